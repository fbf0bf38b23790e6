//! The whole program, built from its settings: every part once, wired in one place.

pub mod tasks;
