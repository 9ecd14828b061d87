//! The page of `hypernest-bench report` in a browser.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hypernest_lab::host::Host;
use hypernest_lab::plan::LAB_DIR_VARIABLE;
use hypernest_lab::setup::chromium::CHROMIUM;
use hypernest_lab::suite::{Stage, Test, TestResult};

pub(crate) const TESTS: &[Test] = &[
    Test::new("report_page::the_plots_are_there", plots)
        .only_on(&[Host::Here])
        .needs(browser_is_there)
        .stage(STAGE),
    Test::new("report_page::a_plot_can_be_looked_at_closely", zoom)
        .only_on(&[Host::Here])
        .needs(browser_is_there)
        .stage(STAGE),
    Test::new("report_page::every_kind_can_be_chosen", choices)
        .only_on(&[Host::Here])
        .needs(browser_is_there)
        .stage(STAGE),
    Test::new("report_page::it_fits_a_narrow_screen", narrow)
        .only_on(&[Host::Here])
        .needs(browser_is_there)
        .stage(STAGE),
];

const STAGE: Stage = Stage {
    name: "browser",
    with: &[CHROMIUM],
    ..Stage::PLAIN
};

/// A report with an example of each outcome, and with names and consoles that attempt to inject markup.
const REPORT: &str = include_str!("golden/l2-exit-2.json");

fn browser() -> PathBuf {
    let lab = std::env::var_os(LAB_DIR_VARIABLE).unwrap_or_default();
    Path::new(&lab).join(CHROMIUM).join(CHROMIUM)
}

fn browser_is_there() -> Result<(), String> {
    let browser = browser();
    browser
        .is_file()
        .then_some(())
        .ok_or_else(|| format!("Chromium ({})", browser.display()))
}

/// The page after its script has run.
struct Seen {
    html: String,
    /// Its output on the console, and errors of its script.
    console: Vec<String>,
}

fn look(page: &Path, part: &str) -> Result<Seen, Box<dyn Error>> {
    let profile = tempfile::tempdir()?;
    let output = Command::new(browser())
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args([
            "--disable-gpu",
            "--enable-logging=stderr",
            "--virtual-time-budget=5000",
            "--dump-dom",
        ])
        .arg(format!("file://{}#{part}", page.display()))
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("Chromium: {}\n{said}", output.status).into());
    }
    let console = said.lines().filter(|line| line.contains(":CONSOLE:"));
    Ok(Seen {
        html: String::from_utf8(output.stdout)?,
        console: console.map(str::to_owned).collect(),
    })
}

/// The page of the report, in a separate directory.
fn page() -> Result<(tempfile::TempDir, PathBuf), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let report = directory.path().join("report.json");
    fs::write(&report, REPORT)?;
    let out = directory.path().join("out");
    let output = Command::new("hypernest-bench")
        .arg("report")
        .arg(&report)
        .arg("--out")
        .arg(&out)
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    let page = out.join("l2-exit.html");
    Ok((directory, page))
}

/// The number of points of each curve of one plot.
fn points(html: &str, part: &str) -> Vec<usize> {
    let Some(from) = html.find(&format!("data-part=\"{part}\"")) else {
        return Vec::new();
    };
    let plot = &html[from..];
    let plot = &plot[..plot.find("</svg>").unwrap_or(plot.len())];
    let curves = plot
        .split("<path ")
        .filter(|path| path.starts_with("class=\"curve\""));
    curves
        .map(|path| path.split(" d=\"").nth(1).unwrap_or_default())
        .map(|d| d.split('"').next().unwrap_or_default())
        .inspect(|d| assert!(!d.contains("NaN") && !d.contains("Infinity"), "{d}"))
        .map(|d| d.matches('L').count())
        .collect()
}

fn plots() -> TestResult {
    let (_directory, page) = page()?;
    for plot in ["percentiles", "histogram"] {
        let seen = look(&page, &format!("group=0&kind=cpuid&plot={plot}"))?;
        assert_eq!(seen.console, [""; 0], "{plot}");
        for part in ["round-trip", "l2-to-l1", "l1", "l1-to-l2"] {
            let points = points(&seen.html, part);
            assert_eq!(points.len(), 3, "{plot} of {part}: a curve for each mode");
            let least = points.iter().min();
            assert!(least > Some(&10), "{plot} of {part}: {points:?}");
        }
        assert!(seen.html.contains("VMREAD 22.0"), "the bars are missing");
        assert!(seen.html.contains("<th scope=\"row\">evmcs: L1 to L2</th>"));
    }
    Ok(())
}

fn choices() -> TestResult {
    let (_directory, page) = page()?;
    for (choice, curves, without) in [
        ("group=0&kind=interrupt", 3, "l1-to-l2"),
        // A failed measurement has the figures until its failure.
        ("group=0&kind=hlt", 1, "round-trip"),
        ("group=1&kind=cpuid", 1, "round-trip"),
        ("group=7&kind=%3Cb%3E", 3, "round-trip"),
    ] {
        let seen = look(&page, choice)?;
        assert_eq!(seen.console, [""; 0], "{choice}");
        assert_eq!(points(&seen.html, without).len(), curves, "{choice}");
    }
    // With Linux as L1 there are no parts, and no empty plots of them.
    let linux = look(&page, "group=1&kind=cpuid")?;
    assert!(points(&linux.html, "l1").is_empty());
    assert_eq!(linux.html.matches("<figure hidden=\"\">").count(), 3);
    let micro = look(&page, "group=0&kind=cpuid")?;
    assert_eq!(micro.html.matches("<figure hidden=\"\">").count(), 0);
    Ok(())
}

/// Performs a user's actions, and stores in the page whether each step changed the plot and `0` restored the
/// whole view.
const ZOOM: &str = r#"<script>
{
  const plot = document.querySelector('svg[data-part="round-trip"]');
  const seen = () => plot.querySelector(".curve").getAttribute("d");
  const before = seen();
  const key = (key) => plot.dispatchEvent(new KeyboardEvent("keydown", { key, cancelable: true }));
  const at = (x, y) => {
    const box = plot.getBoundingClientRect();
    return { clientX: box.left + box.width * x, clientY: box.top + box.height * y, button: 0, pointerId: 1 };
  };
  // There is no such pointer to be captured.
  plot.setPointerCapture = () => {};
  const steps = {
    wheel: () => { plot.focus(); plot.dispatchEvent(new WheelEvent("wheel", { deltaY: -1, cancelable: true, ...at(0.5, 0.5) })); },
    drag: () => {
      plot.dispatchEvent(new PointerEvent("pointerdown", at(0.3, 0.2)));
      plot.dispatchEvent(new PointerEvent("pointermove", at(0.6, 0.7)));
      plot.dispatchEvent(new PointerEvent("pointerup", at(0.6, 0.7)));
    },
    plus: () => key("+"),
    arrow: () => key("ArrowRight"),
  };
  const told = [];
  for (const [name, step] of Object.entries(steps)) {
    step();
    const changed = seen() !== before;
    key("0");
    told.push(`${name}:${changed}:${seen() === before}`);
  }
  document.body.setAttribute("data-told", told.join(" "));
}
</script></body>"#;

fn zoom() -> TestResult {
    let (_directory, page) = page()?;
    let html = fs::read_to_string(&page)?;
    fs::write(&page, html.replace("</body>", ZOOM))?;
    for plot in ["percentiles", "histogram"] {
        let seen = look(&page, &format!("plot={plot}"))?;
        assert_eq!(seen.console, [""; 0], "{plot}");
        let told = "data-told=\"wheel:true:true drag:true:true plus:true:true arrow:true:true\"";
        assert!(seen.html.contains(told), "{plot}");
    }
    Ok(())
}

/// Makes the page as narrow as a telephone, opens all collapsed sections, and stores in the page all elements
/// that are wider than that, except those that scroll by themselves.
const NARROW: &str = r#"<script>
{
  document.documentElement.style.width = "420px";
  document.body.style.width = "420px";
  for (const folded of document.querySelectorAll("details")) folded.open = true;
  const scrolls = (one) => one.closest(".wide") !== null;
  const wide = [...document.body.querySelectorAll("*")]
    .filter((one) => !scrolls(one) && !one.closest("svg") && one.getBoundingClientRect().right > 420.5)
    .map((one) => `${one.tagName}.${one.className}`);
  document.body.setAttribute("data-told", wide.length ? wide.slice(0, 5).join(" ") : "fits");
}
</script></body>"#;

fn narrow() -> TestResult {
    let (_directory, page) = page()?;
    let html = fs::read_to_string(&page)?;
    fs::write(&page, html.replace("</body>", NARROW))?;
    for part in ["group=0&kind=cpuid", "group=1&kind=cpuid"] {
        let seen = look(&page, part)?;
        assert_eq!(seen.console, [""; 0], "{part}");
        let told = seen.html.split("data-told=\"").nth(1).unwrap_or_default();
        let told = told.split('"').next().unwrap_or_default();
        assert_eq!(told, "fits", "{part}");
    }
    Ok(())
}
