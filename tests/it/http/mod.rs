//! The HTTP interface: connections, errors, and the answers of limits (interface.md §3).

mod admin;
mod connection;
mod errors;
mod hostile;
mod limits;
mod streams;
mod support;
