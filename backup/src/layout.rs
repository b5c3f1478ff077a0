//! Disk layout: table and regions of a disk, from its bytes.
