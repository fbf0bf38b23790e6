//! The rules, as values: no I/O, no async, no clock. Time, ids and randomness come in as arguments.

pub mod administrator;
pub mod calibration;
pub mod feature;
pub mod grant;
pub mod ids;
pub mod limit;
pub mod names;
pub mod plan;
pub mod price;
pub mod processor;
pub mod quantity;
pub mod reach;
pub mod reservation;
pub mod reset;
pub mod session;
pub mod subscription;
pub mod tenant;
pub mod time;
pub mod usage;
pub mod window;
