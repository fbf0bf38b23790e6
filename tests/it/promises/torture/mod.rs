//! Promises under violence. Each test has a long form: see [`crate::support::torture`].

mod disk_faults;
mod kills;
mod stripe;
