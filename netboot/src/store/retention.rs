//! Which restore points rules keep: a pure function of the list, the rules and the time zone.
//!
//! Rules count days, weeks, months and years that have a restore point, not those of the calendar: a
//! machine that was off for a year keeps its seven daily ones. Only sound restore points are counted,
//! so that a damaged one never takes a good one's place.
//!
//! Factory images are counted apart from the backups, and only when that is asked for.
//!
//! Invariant: never removed are pinned ones, `factory` images (unless asked for), damaged ones (part of one may still be
//! wanted; a person says `forget`), and the newest sound one of each machine and kind.

use std::collections::BTreeMap;

use jiff::{Timestamp, tz::TimeZone};
use protocol::api::RestorePointView;
use protocol::upkeep::{RetentionRules, Verdict};

/// Decides for each restore point; machine by machine, the newest first. `images` says whether the rules
/// are for factory images, too.
pub(crate) fn decide(
    points: &[RestorePointView],
    rules: &RetentionRules,
    zone: &TimeZone,
    images: bool,
) -> Vec<Verdict> {
    let mut machines: BTreeMap<(&str, bool), Vec<&RestorePointView>> = BTreeMap::new();
    for point in points {
        let key = (machine_of(point), point.is_factory());
        machines.entry(key).or_default().push(point);
    }
    let mut verdicts = Vec::new();
    for mut own in machines.into_values() {
        own.sort_by(|a, b| (b.captured_at, &b.id).cmp(&(a.captured_at, &a.id)));
        let mut counted = Counted::new(rules, zone);
        for point in own {
            let mut reasons = Vec::new();
            if point.pinned {
                reasons.push("pinned".to_owned());
            }
            if point.is_factory() && !images {
                reasons.push("factory image".to_owned());
            } else if is_sound(point) {
                reasons.extend(counted.reasons(point.captured_at));
            } else {
                reasons.push(format!(
                    "{}: only `netboot forget` removes it",
                    point.status
                ));
            }
            verdicts.push(Verdict {
                id: point.id.clone(),
                machine_name: point.machine_name.clone(),
                captured_at: point.captured_at,
                keep: !reasons.is_empty(),
                reasons,
            });
        }
    }
    verdicts
}

/// What tells the machines of restore points apart.
pub(crate) fn machine_of(point: &RestorePointView) -> &str {
    point.machine.as_deref().unwrap_or(&point.machine_name)
}

fn is_sound(point: &RestorePointView) -> bool {
    ["successful", "warnings"].contains(&point.status.as_str())
}

/// What the rules have kept of one machine so far, from the newest on.
struct Counted<'a> {
    zone: &'a TimeZone,
    any: bool,
    last: (u32, u32),
    periods: [Period; 4],
}

/// One rule that keeps the newest of each period.
struct Period {
    word: &'static str,
    name: fn(jiff::civil::Date) -> (i16, i16),
    most: u32,
    kept: u32,
    /// The period of the one that was kept last.
    latest: Option<(i16, i16)>,
}

impl<'a> Counted<'a> {
    fn new(rules: &RetentionRules, zone: &'a TimeZone) -> Self {
        type Name = fn(jiff::civil::Date) -> (i16, i16);
        let period = |word, most, name: Name| Period {
            word,
            name,
            most,
            kept: 0,
            latest: None,
        };
        Self {
            zone,
            any: false,
            last: (rules.keep_last, 0),
            periods: [
                period("daily", rules.keep_daily, |day| {
                    (day.year(), day.day_of_year())
                }),
                period("weekly", rules.keep_weekly, |day| {
                    let week = day.iso_week_date();
                    (week.year(), i16::from(week.week()))
                }),
                period("monthly", rules.keep_monthly, |day| {
                    (day.year(), i16::from(day.month()))
                }),
                period("yearly", rules.keep_yearly, |day| (day.year(), 0)),
            ],
        }
    }

    fn reasons(&mut self, captured_at: u64) -> Vec<String> {
        let mut reasons = Vec::new();
        if !self.any {
            self.any = true;
            reasons.push("the machine's newest".to_owned());
        }
        let (most, kept) = &mut self.last;
        if kept < most {
            *kept += 1;
            reasons.push(format!("last {kept} of {most}"));
        }
        let time = i64::try_from(captured_at)
            .ok()
            .and_then(|seconds| Timestamp::from_second(seconds).ok());
        let Some(time) = time else {
            reasons.push("its time is no time".to_owned());
            return reasons;
        };
        let day = time.to_zoned(self.zone.clone()).date();
        for period in &mut self.periods {
            let now = (period.name)(day);
            if period.kept < period.most && period.latest != Some(now) {
                period.kept += 1;
                period.latest = Some(now);
                reasons.push(format!(
                    "{} {} of {}",
                    period.word, period.kept, period.most
                ));
            }
        }
        reasons
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use super::*;

    const DAY: u64 = 24 * 60 * 60;

    fn point(machine: &str, captured_at: u64) -> RestorePointView {
        RestorePointView {
            id: format!("{machine}-{captured_at}").try_into().unwrap(),
            machine: Some(machine.to_owned()),
            machine_name: machine.to_owned(),
            captured_at,
            system: None,
            status: "successful".to_owned(),
            warnings: Vec::new(),
            disk_bytes: 0,
            data_bytes: 0,
            stored_bytes: 0,
            kind: "backup".to_owned(),
            image: None,
            pinned: false,
        }
    }

    fn kept(points: &[RestorePointView], rules: &RetentionRules) -> Vec<u64> {
        let verdicts = decide(points, rules, &TimeZone::UTC, false);
        assert_eq!(verdicts.len(), points.len());
        let kept = verdicts.iter().filter(|verdict| verdict.keep);
        kept.map(|verdict| verdict.captured_at).collect()
    }

    #[test]
    fn each_rule_keeps_the_newest_of_its_periods() {
        // 2026-01-01 is a Thursday; two a day, at 0:00 and 12:00, for 60 days.
        let start = 1_767_225_600;
        let points: Vec<_> = (0..120).map(|n| point("m", start + n * DAY / 2)).collect();
        let noon = |day: u64| start + day * DAY + DAY / 2;
        let rules =
            |keep_last, keep_daily, keep_weekly, keep_monthly, keep_yearly| RetentionRules {
                keep_last,
                keep_daily,
                keep_weekly,
                keep_monthly,
                keep_yearly,
            };
        assert_eq!(
            kept(&points, &rules(3, 0, 0, 0, 0)),
            [noon(59), noon(59) - DAY / 2, noon(58)]
        );
        assert_eq!(
            kept(&points, &rules(0, 3, 0, 0, 0)),
            [noon(59), noon(58), noon(57)]
        );
        // Day 59 is 1 March, a Sunday; the Sundays before it are days 52 and 45.
        assert_eq!(
            kept(&points, &rules(0, 0, 3, 0, 0)),
            [noon(59), noon(52), noon(45)]
        );
        assert_eq!(
            kept(&points, &rules(0, 0, 0, 9, 0)),
            [noon(59), noon(58), noon(30)]
        );
        assert_eq!(kept(&points, &rules(0, 0, 0, 0, 9)), [noon(59)]);
    }

    #[test]
    fn a_day_is_the_operators_day() {
        let evening = 1_767_225_600 - 3600;
        let points = [point("m", evening), point("m", evening + 2 * 3600)];
        let rules = RetentionRules {
            keep_daily: 5,
            ..RetentionRules::default()
        };
        assert_eq!(kept(&points, &rules).len(), 2);
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        let verdicts = decide(&points, &rules, &zone, false);
        assert_eq!(verdicts.iter().filter(|verdict| verdict.keep).count(), 1);
    }

    #[test]
    fn pinned_factory_damaged_and_newest_sound_ones_stay() {
        let mut points: Vec<_> = (1..7).map(|n| point("m", n * DAY)).collect();
        points[0].pinned = true;
        points[1].kind = "factory".to_owned();
        points[2].status = "damaged".to_owned();
        points[5].status = "damaged".to_owned();
        points.push(point("other", DAY));
        let kept = kept(&points, &RetentionRules::default());
        assert_eq!(kept, [6 * DAY, 5 * DAY, 3 * DAY, DAY, 2 * DAY, DAY]);
    }

    #[test]
    fn images_take_no_backups_place_and_leave_only_when_asked_for() {
        let mut points: Vec<_> = (1..7).map(|n| point("m", n * DAY)).collect();
        for image in [1, 3, 5] {
            points[image].kind = "factory".to_owned();
        }
        let rules = RetentionRules {
            keep_last: 1,
            ..RetentionRules::default()
        };
        // The newest of all is an image, and the newest backup stays all the same.
        assert_eq!(kept(&points, &rules), [5 * DAY, 6 * DAY, 4 * DAY, 2 * DAY]);
        let verdicts = decide(&points, &rules, &TimeZone::UTC, true);
        let stay = verdicts.iter().filter(|verdict| verdict.keep);
        let stay: Vec<_> = stay.map(|verdict| verdict.captured_at).collect();
        assert_eq!(stay, [5 * DAY, 6 * DAY]);
    }

    proptest! {
        #[test]
        fn more_rules_never_keep_less(
            times in proptest::collection::btree_set(0u64..400, 1..60),
            few in any::<[bool; 5]>(), more in any::<[bool; 5]>(),
        ) {
            let points: Vec<_> = times.iter().map(|n| point("m", n * DAY / 3)).collect();
            let rules = |on: [bool; 5]| RetentionRules {
                keep_last: u32::from(on[0]) * 2,
                keep_daily: u32::from(on[1]) * 5,
                keep_weekly: u32::from(on[2]) * 3,
                keep_monthly: u32::from(on[3]) * 4,
                keep_yearly: u32::from(on[4]) * 2,
            };
            let both = std::array::from_fn(|n| few[n] || more[n]);
            let (less, all) = (kept(&points, &rules(few)), kept(&points, &rules(both)));
            prop_assert!(less.iter().all(|time| all.contains(time)));
            prop_assert_eq!(less.first(), points.last().map(|point| &point.captured_at));
        }
    }
}
