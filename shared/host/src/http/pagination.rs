//! The pages of a list: how many entries a client requests, and where the next page begins.
//!
//! A page begins after a key and not at a row number, so that rows which are added or deleted meanwhile move no
//! other row from one page to another.
//!
//! Promise: a page of an API takes 32 KiB at most, so that as many unread pages as there are connections fit
//! into the memory of a service. A list that is answered without a page breaks that promise.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

/// How many entries of a list at most: 1 to `MAX`, and 100 by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageLimit<const MAX: u32>(u32);

const PAGE_LIMIT_DEFAULT: u32 = 100;

/// The rows of a page of an API, in bytes of JSON, unless its first row alone has more. With what surrounds its
/// rows, a page stays below 32 KiB: above that, its buffer would take 64 KiB.
pub(crate) const PAGE_BYTES_MAX: usize = 31 * 1024;

impl<const MAX: u32> PageLimit<MAX> {
    /// How many rows to read: one more than the page has, which shows whether there are further ones.
    pub fn query_limit(self) -> i64 {
        i64::from(self.0) + 1
    }

    /// Truncates the rows to one page, and returns the key after which the next page begins; `None` if this is the
    /// last page. The page may end before its limit, at `PAGE_BYTES_MAX`.
    pub fn split_page<R: Serialize, K>(
        self,
        rows: &mut Vec<R>,
        key: impl FnOnce(&R) -> K,
    ) -> Option<K> {
        let mut bytes = 0;
        let fitting = rows.iter().take_while(|row| {
            bytes += serde_json::to_vec(row).map_or(0, |json| json.len() + 1);
            bytes <= PAGE_BYTES_MAX
        });
        let fitting = fitting.count().max(1);
        PageLimit::<MAX>(self.0.min(fitting as u32)).split_page_by_rows(rows, key)
    }

    /// [`PageLimit::split_page`] without a bound in bytes, for operators.
    pub(crate) fn split_page_by_rows<R, K>(
        self,
        rows: &mut Vec<R>,
        key: impl FnOnce(&R) -> K,
    ) -> Option<K> {
        let limit = self.0 as usize;
        let more = rows.len() > limit;
        rows.truncate(limit);
        rows.last().filter(|_| more).map(key)
    }
}

impl<const MAX: u32> Default for PageLimit<MAX> {
    fn default() -> Self {
        PageLimit(PAGE_LIMIT_DEFAULT.min(MAX))
    }
}

impl<'de, const MAX: u32> Deserialize<'de> for PageLimit<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let refused = || D::Error::custom(format!("must be a whole number from 1 to {MAX}"));
        let text = String::deserialize(deserializer)?;
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        let limit = text.parse().ok().filter(|limit| digits && (1..=MAX).contains(limit));
        limit.map(PageLimit).ok_or_else(refused)
    }
}

impl<const MAX: u32> PartialSchema for PageLimit<MAX> {
    fn schema() -> RefOr<Schema> {
        let schema = ObjectBuilder::new()
            .schema_type(Type::Integer)
            .minimum(Some(1))
            .maximum(Some(MAX))
            .default(Some(PageLimit::<MAX>::default().0.into()));
        schema.into()
    }
}

impl<const MAX: u32> ToSchema for PageLimit<MAX> {}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::extract::{FromRequestParts, Request};

    use super::*;
    use crate::http::extractors::Query;

    #[tokio::test]
    async fn a_limit_is_1_to_its_maximum_and_its_refusal_names_it() {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Page {
            #[serde(default)]
            limit: PageLimit<250>,
        }
        let read = async |query: &str| {
            let request = Request::get(format!("/?{query}")).body(Body::empty()).unwrap();
            let (mut parts, _) = request.into_parts();
            let page = Query::<Page>::from_request_parts(&mut parts, &()).await;
            page.map(|Query(page)| page.limit.0)
        };
        assert_eq!(read("").await.unwrap(), 100);
        assert_eq!(read("limit=1").await.unwrap(), 1);
        assert_eq!(read("limit=250").await.unwrap(), 250);
        for bad in ["0", "251", "-1", "+1", "1.5", "", "all", "99999999999"] {
            let problem = read(&format!("limit={bad}")).await.unwrap_err();
            assert_eq!(
                (problem.status.as_u16(), problem.field.as_deref(), &*problem.detail),
                (422, Some("limit"), "limit: must be a whole number from 1 to 250"),
                "{bad}"
            );
        }
        assert_eq!(PageLimit::<20>::default(), PageLimit(20));
    }

    #[test]
    fn a_page_ends_at_its_limit_and_gives_the_key_before_the_next_one() {
        let mut rows = vec![1, 2, 3];
        assert_eq!(PageLimit::<9>(2).split_page(&mut rows, |row| *row), Some(2));
        assert_eq!(rows, [1, 2]);
        assert_eq!(PageLimit::<9>(2).split_page(&mut rows, |row| *row), None);
        assert_eq!(PageLimit::<9>(2).split_page(&mut Vec::<i32>::new(), |row| *row), None);
    }

    #[test]
    fn a_page_ends_sooner_than_at_its_limit_when_its_rows_are_large() {
        // The JSON of a row has quotes and a comma.
        let row = |bytes: usize| "x".repeat(bytes - 3);
        let pages = |sizes: &[usize]| {
            let mut rows: Vec<String> = sizes.iter().copied().map(row).collect();
            let mut lengths = Vec::new();
            loop {
                let mut page = rows.clone();
                let next = PageLimit::<9>(9).split_page(&mut page, |_| ());
                lengths.push(page.len());
                rows.drain(..page.len());
                if next.is_none() {
                    return lengths;
                }
            }
        };
        let half = PAGE_BYTES_MAX / 2;
        assert_eq!(pages(&[half, half]), [2]);
        assert_eq!(pages(&[half, half + 1, half, half]), [1, 1, 2]);
        assert_eq!(pages(&[10, 3 * half, 3 * half, 10]), [1, 1, 1, 1], "a row alone is a page");
        assert_eq!(pages(&[10; 20]), [9, 9, 2]);
    }
}
