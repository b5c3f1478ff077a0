//! The options of the store's upkeep.

use clap::Args;
use protocol::upkeep::RetentionRules;

/// Options of `gc`.
#[derive(Debug, Args)]
pub(crate) struct GcArgs {
    /// Only say what would be freed
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Rewrite packs of which less than this share is needed, in percent
    /// (0 to 100); costs writing, frees what whole packs do not
    #[arg(long, value_name = "PERCENT", default_value_t = 50,
        value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) rewrite_below: u8,
    /// Print JSON for programs
    #[arg(long)]
    pub(crate) json: bool,
}

/// Options of `prune`.
#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Only of this machine
    #[arg(long, value_name = "MACHINE")]
    pub(crate) machine: Option<String>,
    /// Keep the newest ones
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub(crate) keep_last: u32,
    /// Keep the newest one of each of so many days
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub(crate) keep_daily: u32,
    /// Keep the newest one of each of so many weeks
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub(crate) keep_weekly: u32,
    /// Keep the newest one of each of so many months
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub(crate) keep_monthly: u32,
    /// Keep the newest one of each of so many years
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub(crate) keep_yearly: u32,
    /// Use the rules for factory images, too, counted apart from backups;
    /// without it no image is removed
    #[arg(long)]
    pub(crate) factory: bool,
    /// Only say what would be removed
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print JSON for programs
    #[arg(long)]
    pub(crate) json: bool,
}

impl PruneArgs {
    pub(crate) const fn rules(&self) -> RetentionRules {
        RetentionRules {
            keep_last: self.keep_last,
            keep_daily: self.keep_daily,
            keep_weekly: self.keep_weekly,
            keep_monthly: self.keep_monthly,
            keep_yearly: self.keep_yearly,
        }
    }
}

/// Options of `forget`, `pin` and `unpin`.
#[derive(Debug, Args)]
pub(crate) struct RestorePointArgs {
    /// Id of the restore point, its beginning, or the name of an image
    pub(crate) restore_point: String,
    /// Print JSON for programs
    #[arg(long)]
    pub(crate) json: bool,
}
