//! What an operator does from the terminal: back up, restore, upgrade, look for faults.

mod backup;
mod doctor;
mod metrics;
mod torture;
