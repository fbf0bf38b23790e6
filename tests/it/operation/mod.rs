//! What an operator does from the terminal: back up, restore, upgrade, look for faults.

mod alerts;
mod backup;
mod dashboard;
mod doctor;
mod metrics;
mod torture;
mod traces;
