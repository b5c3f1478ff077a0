//! `lab`: virtual machines booted from the network without root, and the scenarios that prove the product.

mod lab;

fn main() {}
