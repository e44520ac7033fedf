//! Lists come in pages: how many entries a client wants, and where the next page begins.
//!
//! A page begins after a key and not at a number of rows, so that rows which come or go meanwhile
//! move no other from one page to another.

use serde::de::Error;
use serde::{Deserialize, Deserializer};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

/// How many entries of a list at most: 1 to `MAX`, and 100 where nothing is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit<const MAX: u32>(u32);

const LIMIT_DEFAULT: u32 = 100;

impl<const MAX: u32> Limit<MAX> {
    /// How many rows to read: one more than to answer, which tells whether there are further ones.
    pub fn rows(self) -> i64 {
        i64::from(self.0) + 1
    }

    /// Cuts the rows read to the page, and answers where the next one begins: after the key of the
    /// last row here. `None` where there is nothing more.
    pub fn page<R, K>(self, rows: &mut Vec<R>, key: impl FnOnce(&R) -> K) -> Option<K> {
        let limit = self.0 as usize;
        let more = rows.len() > limit;
        rows.truncate(limit);
        rows.last().filter(|_| more).map(key)
    }
}

impl<const MAX: u32> Default for Limit<MAX> {
    fn default() -> Self {
        Limit(LIMIT_DEFAULT.min(MAX))
    }
}

impl<'de, const MAX: u32> Deserialize<'de> for Limit<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let refused = || D::Error::custom(format!("must be a whole number from 1 to {MAX}"));
        let text = String::deserialize(deserializer)?;
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        let limit = text.parse().ok().filter(|limit| digits && (1..=MAX).contains(limit));
        limit.map(Limit).ok_or_else(refused)
    }
}

impl<const MAX: u32> PartialSchema for Limit<MAX> {
    fn schema() -> RefOr<Schema> {
        let schema = ObjectBuilder::new()
            .schema_type(Type::Integer)
            .minimum(Some(1))
            .maximum(Some(MAX))
            .default(Some(Limit::<MAX>::default().0.into()));
        schema.into()
    }
}

impl<const MAX: u32> ToSchema for Limit<MAX> {}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::extract::{FromRequestParts, Request};

    use super::*;
    use crate::extract::Query;

    #[tokio::test]
    async fn a_limit_is_1_to_its_maximum_and_its_refusal_names_it() {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Page {
            #[serde(default)]
            limit: Limit<250>,
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
        assert_eq!(Limit::<20>::default(), Limit(20));
    }

    #[test]
    fn a_page_ends_where_its_limit_is_and_says_where_the_next_one_begins() {
        let mut rows = vec![1, 2, 3];
        assert_eq!(Limit::<9>(2).page(&mut rows, |row| *row), Some(2));
        assert_eq!(rows, [1, 2]);
        assert_eq!(Limit::<9>(2).page(&mut rows, |row| *row), None);
        assert_eq!(Limit::<9>(2).page(&mut Vec::<i32>::new(), |row| *row), None);
    }
}
