//! Whom money is to be collected by.

pub mod stripe;
