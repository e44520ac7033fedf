//! What is proved on the native stack, and of the whole workspace.

mod structure;
mod launcher;
mod stage;
mod saga;
mod outages;
mod crash_points;
mod faults;
mod faults_database;
mod faults_network;
mod records_faults;
mod faults_long;
mod hostile;
mod records;
mod refusals;
mod fork;
mod announce;
mod contracts;
mod evolution;
mod upgrade;
mod letters;
mod operator;
mod manifests;
mod surroundings;
mod bugs;
mod witness;
