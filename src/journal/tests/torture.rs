//! The journal on disks that fail and lose power. Each has a long form: see [`crate::torture`].

use super::*;

mod faults;
mod power_loss;
