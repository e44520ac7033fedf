//! Many tabs of one browser, which keeps six connections to a host for all of them: each page loads, and each tells
//! whether it is live.

use anyhow::Result;

use super::browser::Browser;
use super::*;

/// More than the browser has connections.
const TABS: usize = 8;

/// So many tabs have a stream at a time.
const STREAMS_MAX: usize = 4;

/// Counts how often a page pauses.
const COUNT_PAUSES: &str = "
    const state = document.getElementById('stream-state');
    const count = () => { window.pauses += state.textContent.startsWith('paused'); };
    window.pauses = 0;
    new MutationObserver(count).observe(state, { childList: true });";

/// A page and a link take no longer, however many tabs are open.
const LOADED_WITHIN: Duration = Duration::from_secs(2);

/// A stream that does not open is given up after five seconds.
const NO_STREAM_TOLD_WITHIN: Duration = Duration::from_secs(8);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes half a minute and needs a browser: make browser"]
async fn the_eighth_tab_of_a_browser_loads_and_a_page_without_a_stream_says_so() -> Result<()> {
    let _permit = stack_permit().await?;
    let (stack, _) = start_stack().await?;
    let url = stack.console_url()?;
    for kind in ["tab", "window"] {
        let browser = Browser::start(1360, 900, false).await?;
        let windows = open_many(&browser, kind, &url).await?;
        browser.show(&windows[0]).await?;
        let begun = Instant::now();
        browser.click("nav a[href='/dead-letters']").await?;
        browser.wait_for("No dead letter matches.", LOADED_WITHIN).await?;
        println!("a link in the first {kind} takes {:.1?}", begun.elapsed());
        wait_for_state(&browser, "live", TIMEOUT).await?;
        // A tab that is looked at may get the focus, and is live then. So each counts when it gave its stream away. The
        // first one shows another page by now.
        let mut paused = 0;
        for window in &windows[1..] {
            browser.switch_to(window).await?;
            paused += usize::from(browser.run("return window.pauses > 0").await? == true);
        }
        let expected = TABS - STREAMS_MAX - 1;
        ensure!(paused >= expected, "{paused} of {TABS} gave their streams away");
        browser.close().await?;
    }
    say_that_no_stream_comes(&stack, &url).await
}

/// Opens the overview in so many tabs or windows.
async fn open_many(browser: &Browser, kind: &str, url: &str) -> Result<Vec<String>> {
    let mut windows = Vec::new();
    for nth in 0..TABS {
        windows.push(browser.new_window(kind).await?);
        let begun = Instant::now();
        let opened = tokio::time::timeout(LOADED_WITHIN, browser.open(url)).await;
        opened.with_context(|| format!("{kind} {nth} does not load"))??;
        wait_for_state(browser, "live", TIMEOUT).await.with_context(|| format!("{kind} {nth}"))?;
        println!("{kind} {nth} is live after {:.1?}", begun.elapsed());
        browser.run(COUNT_PAUSES).await?;
    }
    Ok(windows)
}

/// A tab is hidden, the control room freezes, and the tab is shown again.
async fn say_that_no_stream_comes(stack: &Stack, url: &str) -> Result<()> {
    let browser = Browser::start(1360, 900, false).await?;
    browser.open(url).await?;
    wait_for_state(&browser, "live", TIMEOUT).await?;
    set_hidden(&browser, true).await?;
    wait_for_state(&browser, "paused", TIMEOUT).await?;
    stack.pause("console").await?;
    set_hidden(&browser, false).await?;
    wait_for_state(&browser, "no connection", NO_STREAM_TOLD_WITHIN).await?;
    stack.resume("console").await?;
    wait_for_state(&browser, "live", TIMEOUT).await?;
    browser.close().await
}

/// Tells the page that its tab is hidden, or in sight. Headless Chromium has all its tabs in sight.
async fn set_hidden(browser: &Browser, is_hidden: bool) -> Result<()> {
    let script = format!(
        "Object.defineProperty(document, 'hidden', {{value: {is_hidden}, configurable: true}});
         document.dispatchEvent(new Event('visibilitychange'));"
    );
    browser.run(&script).await.map(drop)
}
