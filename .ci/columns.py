#!/usr/bin/env python3
"""Lines of Rust and Markdown stay within 110 columns. What shows something as it is may be longer: tables, code
blocks and links in Markdown and in documentation comments, raw strings in Rust, and the pages that the program
prints."""

import subprocess
import sys

COLUMNS = 110

# Tests hold them equal to what `hypernest` prints.
PRINTED = ["docs/enlightenments.md", "docs/libvirt.md"]


def raw_string_lines(text):
    """The numbers of the lines that a raw string touches."""
    lines = set()
    at = 0
    while at < len(text):
        two = text[at:at + 2]
        if two == "//":
            at = text.find("\n", at)
            if at < 0:
                break
        elif text[at] == '"':
            at += 1
            while at < len(text) and text[at] != '"':
                at += 2 if text[at] == "\\" else 1
            at += 1
        elif text[at] == "'" and text[at + 1:at + 2] == "\\":
            at = text.find("'", at + 3) + 1 or len(text)
        elif text[at] == "'" and text[at + 2:at + 3] == "'":
            at += 3
        elif text[at] == "r" and not text[at - 1:at].isalnum() or two == "br":
            start = at + (2 if two == "br" else 1)
            hashes = 0
            while text[start + hashes:start + hashes + 1] == "#":
                hashes += 1
            if text[start + hashes:start + hashes + 1] != '"':
                at += 1
                continue
            end = text.find('"' + "#" * hashes, start + hashes + 1)
            end = len(text) if end < 0 else end
            first = text.count("\n", 0, at) + 1
            lines.update(range(first, first + text.count("\n", at, end) + 1))
            at = end + 1 + hashes
        else:
            at += 1
    return lines


def markdown_exceptions(text):
    """The numbers of the lines of code blocks, tables and links."""
    lines = set()
    in_code = False
    for number, line in enumerate(text.split("\n"), 1):
        fence = line.lstrip().startswith("```")
        if in_code or fence or line.lstrip().startswith("|") or "](" in line and " " not in line.strip():
            lines.add(number)
        in_code ^= fence
    return lines


def exceptions_of(name, text):
    if not name.endswith(".rs"):
        return markdown_exceptions(text)
    documentation = "\n".join(
        line.strip()[3:] if line.strip()[:3] in ("///", "//!") else "" for line in text.split("\n")
    )
    return raw_string_lines(text) | markdown_exceptions(documentation)


def too_long(name, text):
    exceptions = exceptions_of(name, text)
    return [
        f"{name}:{number}: {len(line)} columns"
        for number, line in enumerate(text.split("\n"), 1)
        if len(line) > COLUMNS and number not in exceptions
    ]


def main():
    names = subprocess.run(
        ["git", "ls-files", "*.rs", "*.md"], check=True, capture_output=True, text=True
    ).stdout.split()
    found = []
    for name in sorted(set(names) - set(PRINTED)):
        with open(name, encoding="utf-8") as file:
            found += too_long(name, file.read())
    for line in found:
        print(line)
    if found:
        sys.exit(f"{len(found)} lines are longer than {COLUMNS} columns")


if __name__ == "__main__":
    main()
