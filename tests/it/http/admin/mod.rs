//! The administration API (interface.md §4).

mod administrators;
mod entitlements;
mod keys;
mod plans;
mod scopes;
mod tenants;
mod usage;
