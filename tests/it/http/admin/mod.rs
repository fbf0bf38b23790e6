//! The administration API (interface.md §4).

mod administrators;
