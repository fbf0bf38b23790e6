//! Promises under violence. Each test has a long form: see [`crate::support::torture`].

mod kills;
