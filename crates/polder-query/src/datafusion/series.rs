//! How many values `range` and `generate_series` would make.

use arrow::array::{Array, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Date32Type, IntervalMonthDayNanoType, IntervalUnit, TimeUnit, TimestampNanosecondType,
};

use super::bounded::{Argument, Arguments};

const DAY: i128 = 86_400_000_000_000;
/// Days on both sides of 1970 in which dates are counted, at least.
const CALENDAR: i128 = 96_000_000;

/// A series that begins at `start` and ends when it has passed `stop`, or at the edge of its type.
struct Series {
    start: i128,
    stop: i128,
    /// How far a step goes, at least and at most.
    step: (i128, i128),
    down: bool,
    /// The least and the greatest value.
    edges: (i128, i128),
}

/// The most bytes that a call makes.
pub(super) fn weigh(args: &Arguments) -> u64 {
    match args.each.as_slice() {
        [start, stop, by] => match start.values.data_type() {
            DataType::Date32 | DataType::Date64 => dates(args, start, stop, by),
            DataType::Timestamp(..) => timestamps(args, start, stop, by),
            _ => args.sum(|row| integers(start.number(row)?, stop.number(row)?, by.number(row)?)),
        },
        [start, stop] => args.sum(|row| integers(start.number(row)?, stop.number(row)?, 1)),
        [stop] => args.sum(|row| integers(0, stop.number(row)?, 1)),
        _ => 0,
    }
}

fn integers(start: i64, stop: i64, by: i64) -> Option<u64> {
    // A step of 0 is an error of its own.
    let by = Some(i128::from(by)).filter(|by| *by != 0)?;
    let edges = (i64::MIN.into(), i64::MAX.into());
    let (start, stop) = (start.into(), stop.into());
    let series = Series { start, stop, step: (by, by), down: by < 0, edges };
    Some(series.values().saturating_mul(8))
}

fn dates(args: &Arguments, start: &Argument, stop: &Argument, by: &Argument) -> u64 {
    let days = |of: &Argument| cast(&of.values, &DataType::Date32).ok();
    let (Some(starts), Some(stops)) = (days(start), days(stop)) else { return 0 };
    let (starts, stops) = (starts.as_primitive::<Date32Type>(), stops.as_primitive::<Date32Type>());
    args.sum(|row| {
        let (months, days, nanos) = interval(by, row)?;
        // Dates are moved by whole days.
        let whole = days + nanos / DAY;
        if months == 0 && days == 0 {
            return None;
        }
        let series = Series {
            start: starts.value(start.valid(row)?).into(),
            stop: stops.value(stop.valid(row)?).into(),
            step: step_of(months, whole, 1),
            down: months < 0 || days < 0,
            edges: (-CALENDAR, CALENDAR),
        };
        Some(series.values().saturating_mul(4))
    })
}

fn timestamps(args: &Arguments, start: &Argument, stop: &Argument, by: &Argument) -> u64 {
    let nanos = |of: &Argument| {
        let DataType::Timestamp(_, zone) = of.values.data_type() else { return None };
        cast(&of.values, &DataType::Timestamp(TimeUnit::Nanosecond, zone.clone())).ok()
    };
    let zoned = matches!(start.values.data_type(), DataType::Timestamp(_, Some(_)));
    let (Some(starts), Some(stops)) = (nanos(start), nanos(stop)) else { return 0 };
    let starts = starts.as_primitive::<TimestampNanosecondType>();
    let stops = stops.as_primitive::<TimestampNanosecondType>();
    args.sum(|row| {
        let (months, days, nanos) = interval(by, row)?;
        if (months, days, nanos) == (0, 0, 0) {
            return None;
        }
        let far = step_of(months, days * DAY + nanos, DAY);
        let down = far.1 < 0;
        let (start, stop) = (start.valid(row)?, stop.valid(row)?);
        // Days and months are those of the time zone, whose clocks are moved now and then.
        let moved = if zoned && (months, days) != (0, 0) { 2 * DAY } else { 0 };
        let stop = i128::from(stops.value(stop)) + if down { -moved } else { moved };
        let series = Series {
            start: starts.value(start).into(),
            stop,
            step: far,
            down,
            edges: (i64::MIN.into(), i64::MAX.into()),
        };
        Some(series.values().saturating_mul(8))
    })
}

/// Months, days and nanoseconds.
fn interval(of: &Argument, row: usize) -> Option<(i128, i128, i128)> {
    let index = of.valid(row)?;
    if *of.values.data_type() != DataType::Interval(IntervalUnit::MonthDayNano) {
        return None;
    }
    let value = of.values.as_primitive::<IntervalMonthDayNanoType>().value(index);
    Some((value.months.into(), value.days.into(), value.nanoseconds.into()))
}

/// The least and the most of `months` with `rest`, in units of which a day has `day`.
fn step_of(months: i128, rest: i128, day: i128) -> (i128, i128) {
    let (short, long) = (months * 28 * day + rest, months * 31 * day + rest);
    (short.min(long), short.max(long))
}

impl Series {
    fn values(&self) -> u64 {
        let (least, most) = self.step;
        // As if it went up.
        let (start, stop, (least, most), first) = if self.down {
            (-self.start, -self.stop, (-most, -least), -self.edges.1)
        } else {
            (self.start, self.stop, (least, most), self.edges.0)
        };
        let values = if least > 0 {
            if start > stop {
                return 0;
            }
            (stop - start) / least + 2
        } else if most < 0 {
            // Away from its end: until the type has no more values.
            (start - first).max(0) / -most + 2
        } else {
            // It may stand still.
            return u64::MAX;
        };
        u64::try_from(values).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn days(start: i128, stop: i128, by: (i128, i128), down: bool) -> u64 {
        Series { start, stop, step: by, down, edges: (-CALENDAR, CALENDAR) }.values()
    }

    #[test]
    fn a_series_has_no_more_values_than_said() {
        let integers: [(i64, i64, i64, u64); 8] = [
            (1, 10, 1, 10),
            (1, 10, 3, 4),
            (10, 1, 1, 0),
            (10, 1, -3, 4),
            (1, 10, -1, 0),
            (i64::MIN, i64::MAX, i64::MAX, 3),
            (i64::MAX, i64::MIN, i64::MIN, 2),
            (0, i64::MAX, i64::MAX, 2),
        ];
        for (start, stop, by, values) in integers {
            let said = super::integers(start, stop, by).expect("a step") / 8;
            assert!((values..=values + 2).contains(&said), "{start} {stop} {by}: {said}");
        }
        assert_eq!(super::integers(i64::MIN, i64::MAX, 1), Some(u64::MAX));
        assert_eq!(super::integers(i64::MAX, i64::MIN, -1), Some(u64::MAX));
        assert_eq!(super::integers(1, 2, 0), None);
    }

    #[test]
    fn steps_of_months_and_steps_that_stand_still() {
        // A year by months.
        assert_eq!(days(0, 365, step_of(1, 0, 1), false), 365 / 28 + 2);
        assert_eq!(days(365, 0, step_of(-1, 0, 1), true), 365 / 28 + 2);
        // A month less 30 days, and a month less 31.
        assert_eq!(days(0, 1, step_of(1, -30, 1), true), u64::MAX);
        assert_eq!(days(0, 1, step_of(1, -31, 1), true), u64::MAX);
        // Away from its end, to the edge of the calendar.
        assert!(days(1, 0, step_of(1, -1, 1), true) > 96_000_000 / 31);
        let widest = step_of(i32::MIN.into(), i128::from(i32::MIN) * DAY, DAY);
        let edges = (i64::MIN.into(), i64::MAX.into());
        let series = Series { start: 0, stop: i64::MIN.into(), step: widest, down: true, edges };
        assert_eq!(series.values(), 2);
    }
}
