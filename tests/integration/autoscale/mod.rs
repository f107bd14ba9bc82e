//! vcpud-autoscale: its interface, its files, and what it does with machines.

mod calls;
mod load;
mod scripted;
