#!/usr/bin/env python3
"""Checks every dependency: an accepted licence, from crates.io, one version of each.

Works offline on Cargo.lock and the crates' own manifests. Known holes cannot be looked up offline; deny.toml holds the
same rules for `cargo deny check`, which also asks the advisory database.
"""

import json
import re
import subprocess
import sys

ACCEPTED = {
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "Unicode-3.0",
    "Unlicense", "Zlib",
}
CRATES_IO = "registry+https://github.com/rust-lang/crates.io-index"
# Two versions are in use until the crates named here follow.
TWICE = {
    "bitflags": "vmm-sys-util still uses 1.x",
    "getrandom": "ring still uses 0.2",
    "windows-sys": "ring still uses 0.52; not built on Linux",
    "syn": "clap_derive uses 3.x, the other derive macros 2.x; only at build time",
}


def accepted(expression):
    """Whether an SPDX expression can be satisfied: one side of each OR, all sides of each AND."""
    expression = expression.replace("/", " OR ").strip()
    while expression.startswith("(") and expression.endswith(")") and expression.count("(") == 1:
        expression = expression[1:-1]
    depth, parts, start = 0, {"AND": [], "OR": []}, {"AND": 0, "OR": 0}
    for token in re.finditer(r"\(|\)|\bAND\b|\bOR\b", expression):
        word = token.group()
        depth += {"(": 1, ")": -1}.get(word, 0)
        if depth == 0 and word in parts:
            parts[word].append(expression[start[word]:token.start()])
            start[word] = token.end()
    for word, combine in (("OR", any), ("AND", all)):
        if parts[word]:
            return combine(accepted(p) for p in parts[word] + [expression[start[word]:]])
    return expression.strip() in ACCEPTED


def main():
    metadata = subprocess.run(
        ["cargo", "metadata", "--format-version", "1", "--locked"], check=True, capture_output=True, text=True)
    packages = json.loads(metadata.stdout)["packages"]
    problems, versions = [], {}
    for package in packages:
        name = f"{package['name']} {package['version']}"
        if not accepted(package["license"] or ""):
            problems.append(f"{name}: licence {package['license']!r} is not accepted")
        if package["source"] not in (None, CRATES_IO):
            problems.append(f"{name}: comes from {package['source']}")
        versions.setdefault(package["name"], []).append(package["version"])
    for name, found in versions.items():
        if len(found) > 1 and name not in TWICE:
            problems.append(f"{name}: versions {', '.join(found)}")
    for name in TWICE.keys() - {n for n, found in versions.items() if len(found) > 1}:
        problems.append(f"{name}: no longer there twice, take it off the list")
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(packages)} packages checked, {len(problems)} problems")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
