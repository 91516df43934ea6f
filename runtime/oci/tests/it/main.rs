//! The built command line on real bundles: what an engine, an operator and an attacker do with it.

mod bundle;
mod cli;
mod compatible;
mod groups;
mod hostile;
mod real_systemd;
mod systemd;
mod users;
mod views;
mod words;
