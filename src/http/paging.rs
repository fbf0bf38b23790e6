//! Long lists: `?limit=1..500&cursor=`, answered `{"items": […], "next_cursor": null}`.
//!
//! A cursor names the last thing shown by what it is sorted by, never by a count: things that are added or go while
//! a client pages neither repeat nor hide others.

use std::fmt::Display;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Serialize;

use super::{
    error::{ApiError, ApiResult},
    fields::FieldType,
    query::Query,
};

const DEFAULT_LIMIT: u64 = 100;
const LARGEST_LIMIT: u64 = 500;

/// The part of a list that is asked for; `K` is what the list is sorted by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<K> {
    limit: usize,
    /// What the page before ended with.
    pub after: Option<K>,
}

impl<K: FieldType> Page<K> {
    /// # Errors
    /// [`ApiError::Invalid`].
    pub fn of(query: &mut Query) -> ApiResult<Self> {
        let limit = match query.optional::<i64>("limit")? {
            None => DEFAULT_LIMIT,
            Some(asked) => match u64::try_from(asked) {
                Ok(limit) if (1..=LARGEST_LIMIT).contains(&limit) => limit,
                _ => {
                    let accepted = format!("a whole number from 1 to {LARGEST_LIMIT}");
                    return Err(ApiError::bad_field("limit", asked, accepted));
                }
            },
        };
        let cursor = query.optional::<String>("cursor")?;
        let after = cursor.map(|cursor| {
            let bytes = URL_SAFE_NO_PAD.decode(&cursor).ok();
            let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
            text.and_then(|text| K::of_text(&text)).ok_or_else(|| {
                ApiError::bad_field(
                    "cursor",
                    "none that was given out here",
                    "the next_cursor of the page before, or nothing",
                )
            })
        });
        Ok(Self {
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
            after: after.transpose()?,
        })
    }
}

impl<K: PartialEq> Page<K> {
    /// What comes after the page before, of a whole list off which nothing is ever taken.
    #[must_use]
    pub fn rest_of<R>(&self, mut rows: Vec<R>, key: impl Fn(&R) -> K) -> Vec<R> {
        if let Some(after) = &self.after {
            let seen = rows.iter().position(|row| key(row) == *after);
            rows.drain(..seen.map_or(0, |index| index + 1));
        }
        rows
    }
}

impl<K: Display> Page<K> {
    /// How many to read: one more than is shown tells whether there is another page.
    #[must_use]
    pub fn to_read(&self) -> usize {
        self.limit + 1
    }

    /// The page, of the rows that [`to_read`](Self::to_read) asked for.
    #[must_use]
    pub fn show<R, T>(
        &self,
        mut rows: Vec<R>,
        key: impl Fn(&R) -> K,
        show: impl FnMut(R) -> T,
    ) -> Listed<T> {
        let is_more = rows.len() > self.limit;
        rows.truncate(self.limit);
        let last = rows.last().filter(|_| is_more).map(key);
        Listed {
            next_cursor: last.map(|key| URL_SAFE_NO_PAD.encode(key.to_string())),
            items: rows.into_iter().map(show).collect(),
        }
    }

    /// A page that ends before it is full, since enough was looked at: the next goes on behind `after`.
    #[must_use]
    pub fn show_until<R, T>(
        &self,
        rows: Vec<R>,
        after: Option<K>,
        show: impl FnMut(R) -> T,
    ) -> Listed<T> {
        Listed {
            next_cursor: after.map(|key| URL_SAFE_NO_PAD.encode(key.to_string())),
            items: rows.into_iter().map(show).collect(),
        }
    }
}

/// A page as it is answered.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Listed<T> {
    pub items: Vec<T>,
    /// For the next page; null on the last.
    pub next_cursor: Option<String>,
}

impl<T> Listed<T> {
    /// A list that is short by nature, whole.
    #[must_use]
    pub fn whole(items: Vec<T>) -> Self {
        Self {
            items,
            next_cursor: None,
        }
    }
}

/// `limit` and `cursor`, as the API's description shows them.
pub struct Paging;

impl utoipa::IntoParams for Paging {
    fn into_params(
        _: impl Fn() -> Option<utoipa::openapi::path::ParameterIn>,
    ) -> Vec<utoipa::openapi::path::Parameter> {
        use utoipa::openapi::{
            ObjectBuilder, Required, Type,
            path::{ParameterBuilder, ParameterIn},
        };
        let limit = ObjectBuilder::new()
            .schema_type(Type::Integer)
            .minimum(Some(1))
            .maximum(Some(LARGEST_LIMIT))
            .default(Some(DEFAULT_LIMIT.into()));
        let cursor = ObjectBuilder::new().schema_type(Type::String);
        let parameter = |name: &str, text: &str, schema: ObjectBuilder| {
            ParameterBuilder::new()
                .name(name)
                .parameter_in(ParameterIn::Query)
                .required(Required::False)
                .description(Some(text))
                .schema(Some(schema))
                .build()
        };
        vec![
            parameter("limit", "How many items at most", limit),
            parameter("cursor", "The next_cursor of the page before", cursor),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(query: &str) -> ApiResult<Page<i64>> {
        Page::of(&mut Query::of(query))
    }

    #[test]
    fn pages_follow_one_another_by_what_they_are_sorted_by() {
        let rows = |page: &Page<i64>| {
            let after = page.after.unwrap_or(0);
            (after + 1..=5).take(page.to_read()).collect::<Vec<i64>>()
        };
        let (mut query, mut seen) = ("limit=2".to_owned(), vec![]);
        loop {
            let page = page(&query).unwrap();
            let listed = page.show(rows(&page), |row| *row, |row| row);
            seen.extend(listed.items);
            match listed.next_cursor {
                Some(cursor) => query = format!("limit=2&cursor={cursor}"),
                None => break,
            }
        }
        assert_eq!(seen, [1, 2, 3, 4, 5]);
        let exact = page("limit=5").unwrap();
        assert_eq!(
            exact.show(rows(&exact), |row| *row, |row| row).next_cursor,
            None
        );
    }

    #[test]
    fn a_limit_out_of_bounds_and_a_made_up_cursor_are_refused() {
        for query in [
            "limit=0",
            "limit=501",
            "limit=x",
            "limit=",
            "cursor=!",
            "cursor=eA",
            "cursor=",
        ] {
            assert!(page(query).is_err(), "{query}");
        }
        assert_eq!(page("").unwrap().to_read(), 101);
    }
}
