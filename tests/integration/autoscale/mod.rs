//! vcpud-autoscale: its interface, its files, and what it does with machines.

mod calls;
mod duel;
mod faults;
mod files;
mod hostile;
mod load;
mod scripted;
