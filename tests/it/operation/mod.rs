//! What an operator does from the terminal: back up, restore, upgrade, look for faults.

mod alerts;
mod backup;
mod dashboard;
mod doctor;
mod healthcheck;
mod metrics;
mod packaging;
mod torture;
mod traces;
