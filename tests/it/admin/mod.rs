//! The page for people, over real HTTP and without JavaScript: signing in, and every form.

mod browser;
mod first_steps;
mod plans;
mod sign_in;
mod tenants;
