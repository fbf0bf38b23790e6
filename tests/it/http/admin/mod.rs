//! The administration API (interface.md §4).

mod administrators;
mod keys;
mod plans;
mod tenants;
mod usage;
