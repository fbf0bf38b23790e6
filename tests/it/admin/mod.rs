//! The page for people: over real HTTP, where every form works without JavaScript, and in a real browser.

mod administrators;
mod browser;
mod chromium;
mod first_steps;
mod in_browser;
mod in_flight;
mod outbox;
mod overview;
mod plans;
mod sign_in;
mod tenants;
