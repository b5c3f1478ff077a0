//! Dates and times as FAT and exFAT keep them.

use super::tree::Timestamp;

/// Date (years from 1980, month, day) and time (hours, minutes, double seconds) with `hundredths` of
/// a second, 0–199, as if they were UTC; `None` when they are no date, for example all zeros.
pub(super) fn timestamp(date: u16, time: u16, hundredths: u8) -> Option<Timestamp> {
    let (year, month, day) = (1980 + i64::from(date >> 9), date >> 5 & 0xf, date & 0x1f);
    let (hour, minute, second) = (time >> 11, time >> 5 & 0x3f, (time & 0x1f) * 2);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = [
        31,
        28 + u16::from(leap),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ];
    let month = usize::from(month).checked_sub(1)?;
    let sane = (1..=*days.get(month)?).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60
        && hundredths < 200;
    if !sane {
        return None;
    }
    let before = year - 1;
    // Days from the year 1 to 1970 in the Gregorian calendar: 719,162.
    let years = before * 365 + before / 4 - before / 100 + before / 400 - 719_162;
    let in_year = i64::from(days[..month].iter().sum::<u16>() + day - 1);
    let seconds = i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second);
    Some(Timestamp {
        seconds: (years + in_year) * 86_400 + seconds + i64::from(hundredths / 100),
        nanoseconds: u32::from(hundredths % 100) * 10_000_000,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn date(year: u16, month: u16, day: u16) -> u16 {
        (year - 1980) << 9 | month << 5 | day
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (date, time, hundredths, seconds) in [
            (date(1980, 1, 1), 0, 0, 315_532_800),
            (date(2000, 2, 29), 23 << 11 | 59 << 5 | 29, 199, 951_868_799),
            (date(2024, 12, 31), 12 << 11, 0, 1_735_646_400),
            (date(2107, 12, 31), 0, 0, 4_354_732_800),
        ] {
            assert_eq!(timestamp(date, time, hundredths).unwrap().seconds, seconds);
        }
        let fine = timestamp(date(2000, 1, 1), 0, 150).unwrap();
        assert_eq!(fine.nanoseconds, 500_000_000);
    }

    #[test]
    fn what_is_no_date_is_none() {
        for (date, time, hundredths) in [
            (0, 0, 0),
            (date(2023, 2, 29), 0, 0),
            (date(2023, 13, 1), 0, 0),
            (date(2023, 1, 1), 24 << 11, 0),
            (date(2023, 1, 1), 30, 0),
            (date(2023, 1, 1), 0, 200),
        ] {
            assert_eq!(timestamp(date, time, hundredths), None);
        }
    }
}
