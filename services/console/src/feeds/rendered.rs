//! The regions of the overview. They are rendered once for all viewers, and a viewer gets those that changed.

use std::sync::Arc;

use maud::{Markup, PreEscaped};

/// The markup of every region in the sequence of the page, and the version in which it changed last.
#[derive(Clone, Debug, Default)]
pub struct Rendered {
    pub version: u64,
    regions: Vec<(&'static str, Arc<str>, u64)>,
}

impl Rendered {
    /// The next version. A region that is as before keeps its own.
    pub fn next(&self, markup: impl Iterator<Item = (&'static str, String)>) -> Rendered {
        let version = self.version + 1;
        let region = |(id, text): (&'static str, String)| {
            let known =
                self.regions.iter().find(|(other, known, _)| *other == id && **known == *text);
            known.cloned().unwrap_or_else(|| (id, text.into(), version))
        };
        Rendered { version, regions: markup.map(region).collect() }
    }

    /// A region, for the page.
    pub fn markup(&self, id: &str) -> Markup {
        let found = self.regions.iter().find(|(other, ..)| *other == id);
        PreEscaped(found.map_or(String::new(), |(_, text, _)| text.to_string()))
    }

    /// The regions that changed after a version.
    pub fn changed_since(&self, version: u64) -> impl Iterator<Item = (&'static str, &str)> {
        let changed = self.regions.iter().filter(move |(.., changed)| *changed > version);
        changed.map(|(id, text, _)| (*id, &**text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_viewer_gets_the_regions_that_changed_after_the_last_that_it_got() {
        let texts =
            |texts: [(&'static str, &str); 2]| texts.map(|(id, text)| (id, text.to_string()));
        let first = Rendered::default().next(texts([("figures", "a"), ("books", "b")]).into_iter());
        let next = first.next(texts([("figures", "c"), ("books", "b")]).into_iter());
        assert_eq!(Vec::from_iter(next.changed_since(0)), [("figures", "c"), ("books", "b")]);
        assert_eq!(Vec::from_iter(next.changed_since(first.version)), [("figures", "c")]);
        assert_eq!(next.changed_since(next.version).count(), 0);
    }
}
