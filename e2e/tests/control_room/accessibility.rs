//! Every page can be read and used by everybody: in light and dark, on wide and narrow screens, with a keyboard alone
//! and with a screen reader. What the browser lays out is inspected, and each view is a picture.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::browser::Browser;
use super::take_screenshot;
use crate::fixture::TIMEOUT;

/// Returns what is wrong with a page.
const INSPECT: &str = include_str!("inspect.js");

/// Notes every control of the page, and then each that gets the focus.
const NOTE_FOCUS: &str = include_str!("note_focus.js");

/// What did not get the focus, or did not show it.
const UNREACHED: &str = "return window.unreached()";

/// Widths of a desktop and of a small phone.
const WIDTHS: [u32; 2] = [1360, 360];

/// The keys of WebDriver.
const TAB: &str = "\u{e004}";

/// More than the controls of any page here.
const TABS_MAX: usize = 120;

/// Inspects pages, which are paths with the names of their pictures, in every view.
pub async fn inspect(browser: &Browser, url: &str, pages: &[(&str, &str)]) -> Result<()> {
    let mut faults = Vec::new();
    for (path, name) in pages {
        for scheme in ["light", "dark"] {
            for width in WIDTHS {
                browser.emulate(width, scheme).await?;
                browser.open(&format!("{url}{path}")).await?;
                browser.wait_for("control room", TIMEOUT).await?;
                let view = format!("{name}-{scheme}-{width}");
                take_screenshot(browser, &view).await?;
                let found = browser.run(INSPECT).await?;
                let found = found.as_array().context("a list")?.clone();
                faults.extend(found.into_iter().map(|fault| format!("{view}: {fault}")));
            }
        }
        browser.emulate(WIDTHS[0], "light").await?;
        let found = use_keyboard(browser, &format!("{url}{path}")).await?;
        faults.extend(found.into_iter().map(|fault| format!("{name}, by keyboard: {fault}")));
    }
    ensure!(faults.is_empty(), "{faults:#?}");
    Ok(())
}

/// Goes through the page with the Tab key.
async fn use_keyboard(browser: &Browser, page: &str) -> Result<Vec<Value>> {
    browser.open(page).await?;
    let controls = browser.run(NOTE_FOCUS).await?.as_u64().context("a number")? as usize;
    ensure!(controls > 0 && controls < TABS_MAX, "{page} has {controls} controls");
    browser.press(TAB, TABS_MAX.min(controls + 20)).await?;
    Ok(browser.run(UNREACHED).await?.as_array().context("a list")?.clone())
}

impl Browser {
    /// Shows pages as on a screen of this width, in light or dark.
    async fn emulate(&self, width: u32, scheme: &str) -> Result<()> {
        let screen =
            json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false});
        self.command("Emulation.setDeviceMetricsOverride", screen).await?;
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.command("Emulation.setEmulatedMedia", media).await.map(drop)
    }
}
