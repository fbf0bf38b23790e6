//! The page for people, over real HTTP and without JavaScript: signing in, and every form.

mod administrators;
mod browser;
mod first_steps;
mod in_flight;
mod plans;
mod sign_in;
mod tenants;
