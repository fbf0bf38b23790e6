//! The page for people (interface.md §12): a file a page, each a frame around what a service says.
//!
//! Everything works without JavaScript: a form goes to its own page's address, what it does is in its button (`do`),
//! and its answer is a redirect, or the page again with the fault beside the field. Rules are the services'; roles are
//! asked here as they are in `http::admin`.

mod administrators;
mod assets;
mod audit;
mod chart;
mod form;
mod format;
mod in_flight;
mod near;
mod outbox;
mod overview;
mod plan;
mod plans;
mod router;
mod session;
mod sessions;
mod start;
mod status;
mod tenant;
mod tenants;
mod view;

pub use router::{finish, routes};
