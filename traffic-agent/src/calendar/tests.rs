use super::*;

fn calendar(zone: &str) -> Calendar {
    Calendar::named(zone).expect("a zone of tzdata")
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn span(start: &str, end: &str) -> Span {
    Span { start: at(start), end: at(end) }
}

fn date(text: &str) -> Date {
    text.parse().unwrap()
}

fn day(calendar: &Calendar, text: &str) -> Span {
    calendar.of_date(Unit::Day, date(text)).span
}

fn quarters(span: Span) -> i64 {
    let Range { start, end } = span.quarters();
    end.0 - start.0
}

#[test]
fn day_of_a_half_hour_zone_begins_between_the_hours_of_utc() {
    // 2026-11-24T17:15Z is 1,795,540,500 s; 22 h 45 min before it are 1,795,458,600 s: quarter 1,994,954.
    let day = day(&calendar("Asia/Kolkata"), "2026-11-24");
    assert_eq!(day, span("2026-11-23T18:30:00Z", "2026-11-24T18:30:00Z"));
    assert_eq!(day.quarters(), Quarter(1_994_954)..Quarter(1_994_954 + 96));
}

#[test]
fn hour_of_a_45_minute_zone_has_four_quarters() {
    // 17:29:59Z is 23:14:59 in Nepal (+05:45); its hour began at 17:15Z.
    let hour = calendar("Asia/Kathmandu").containing(Unit::Hour, at("2026-11-24T17:29:59Z"));
    assert_eq!(hour.span.quarters(), Quarter(1_995_045)..Quarter(1_995_049));
    assert_eq!((hour.name().as_str(), hour.day()), ("2026-11-24T23", Some(date("2026-11-24"))));
}

#[test]
fn days_of_a_clock_change_have_92_and_100_quarters() {
    // New York: -05:00 until 2026-03-08T02:00, -04:00 until 2026-11-01T02:00.
    let calendar = calendar("America/New_York");
    let spring = day(&calendar, "2026-03-08");
    assert_eq!(spring, span("2026-03-08T05:00:00Z", "2026-03-09T04:00:00Z"));
    let autumn = day(&calendar, "2026-11-01");
    assert_eq!(autumn, span("2026-11-01T04:00:00Z", "2026-11-02T05:00:00Z"));
    assert_eq!([quarters(spring), quarters(autumn)], [92, 100]);
    // November: 30 days and an hour. The year: both changes undo each other.
    let november = calendar.of_date(Unit::Month, date("2026-11-17"));
    assert_eq!((november.name().as_str(), quarters(november.span)), ("2026-11", 30 * 96 + 4));
    let year = calendar.of_date(Unit::Year, date("2026-11-17"));
    assert_eq!((year.name().as_str(), quarters(year.span)), ("2026", 365 * 96));
}

#[test]
fn hour_that_comes_twice_is_two_hours() {
    let calendar = calendar("America/New_York");
    let hours = calendar.periods(Unit::Hour, day(&calendar, "2026-11-01"));
    assert_eq!(hours.len(), 25);
    assert_eq!(hours[1].span, span("2026-11-01T05:00:00Z", "2026-11-01T06:00:00Z"));
    assert_eq!(hours[2].span, span("2026-11-01T06:00:00Z", "2026-11-01T07:00:00Z"));
    let names: Vec<_> = hours[..4].iter().map(Period::name).collect();
    assert_eq!(names, ["2026-11-01T00", "2026-11-01T01", "2026-11-01T01", "2026-11-01T02"]);
    let hours = calendar.periods(Unit::Hour, day(&calendar, "2026-03-08"));
    let names: Vec<_> = hours[..3].iter().map(Period::name).collect();
    assert_eq!(
        (hours.len(), names),
        (23, vec!["2026-03-08T00".into(), "2026-03-08T01".into(), "2026-03-08T03".into()])
    );
}

#[test]
fn half_an_hour_of_summer_time_cuts_an_hour_at_the_change() {
    // Lord Howe: 02:00 (+11:00) is 01:30 (+10:30) on 2026-04-05; 02:00 is 02:30 on 2026-10-04.
    let calendar = calendar("Australia/Lord_Howe");
    let autumn = day(&calendar, "2026-04-05");
    assert_eq!(quarters(autumn), 98);
    let hours = calendar.periods(Unit::Hour, autumn);
    assert_eq!(hours.len(), 25);
    assert_eq!(hours[1].span, span("2026-04-04T14:00:00Z", "2026-04-04T15:00:00Z"));
    assert_eq!(hours[2].span, span("2026-04-04T15:00:00Z", "2026-04-04T15:30:00Z"));
    assert_eq!(hours[3].span, span("2026-04-04T15:30:00Z", "2026-04-04T16:30:00Z"));
    let spring = day(&calendar, "2026-10-04");
    let hours = calendar.periods(Unit::Hour, spring);
    assert_eq!((quarters(spring), hours.len()), (94, 24));
    assert_eq!(hours[2].span, span("2026-10-03T15:30:00Z", "2026-10-03T16:00:00Z"));
    // Asked for from its end as from its beginning.
    assert_eq!(calendar.containing(Unit::Hour, at("2026-10-03T15:59:59Z")), hours[2]);
}

#[test]
fn date_whose_midnight_is_skipped_or_comes_twice_has_one_beginning() {
    // Chile: 2026-09-06T00:00 (-04:00) is 01:00 (-03:00); 2026-04-05T00:00 (-03:00) is 23:00 of the 4th again.
    let calendar = calendar("America/Santiago");
    let spring = day(&calendar, "2026-09-06");
    assert_eq!(spring, span("2026-09-06T04:00:00Z", "2026-09-07T03:00:00Z"));
    let autumn = day(&calendar, "2026-04-04");
    assert_eq!(autumn, span("2026-04-04T03:00:00Z", "2026-04-05T04:00:00Z"));
    for instant in ["2026-04-05T02:59:59Z", "2026-04-05T03:00:00Z", "2026-04-05T03:59:59Z"] {
        assert_eq!(calendar.date_of(at(instant)), date("2026-04-04"), "{instant}");
    }
    assert_eq!(calendar.date_of(at("2026-04-05T04:00:00Z")), date("2026-04-05"));
}

#[test]
fn day_that_a_zone_skips_is_none_and_no_loop() {
    // Samoa had no 2011-12-30: it went from -10:00 to +14:00 at midnight.
    let calendar = calendar("Pacific/Apia");
    let range = span("2011-12-29T10:00:00Z", "2012-01-01T10:00:00Z");
    let names: Vec<_> = calendar.periods(Unit::Day, range).iter().map(Period::name).collect();
    assert_eq!(names, ["2011-12-29", "2011-12-31", "2012-01-01"]);
    assert_eq!(calendar.yesterday(at("2011-12-30T10:00:00Z")).name(), "2011-12-29");
    let december = calendar.of_date(Unit::Month, date("2011-12-01"));
    assert_eq!(quarters(december.span), 30 * 96);
}

#[test]
fn zone_that_changes_its_offset_for_good_has_a_day_of_another_length() {
    // North Korea: 2018-05-04T23:30 (+08:30) was 00:00 (+09:00). Kazakhstan: 2024-03-01T00:00 (+06:00) was 23:00.
    assert_eq!(quarters(day(&calendar("Asia/Pyongyang"), "2018-05-04")), 94);
    assert_eq!(quarters(day(&calendar("Asia/Almaty"), "2024-02-29")), 100);
}

#[test]
fn week_begins_on_monday_and_has_the_year_of_its_thursday() {
    let calendar = calendar("UTC");
    let week = calendar.containing(Unit::Week, at("2027-01-02T12:00:00Z"));
    assert_eq!(week.span, span("2026-12-28T00:00:00Z", "2027-01-04T00:00:00Z"));
    assert_eq!((week.name().as_str(), week.day()), ("2026-W53", None));
}

#[test]
fn ends_of_a_range_cut_what_they_are_in() {
    let calendar = calendar("UTC");
    let range = span("2026-11-24T10:15:00Z", "2026-11-26T00:00:00Z");
    let days = calendar.periods(Unit::Day, range);
    assert_eq!(days[0].span, span("2026-11-24T10:15:00Z", "2026-11-25T00:00:00Z"));
    assert_eq!(days[1].span, span("2026-11-25T00:00:00Z", "2026-11-26T00:00:00Z"));
    assert_eq!((days.len(), days[0].name()), (2, "2026-11-24".to_owned()));
    assert_eq!(calendar.dates(range), None);
    assert_eq!(calendar.dates(days[1].span), Some(date("2026-11-25")..date("2026-11-26")));
}

#[test]
fn periods_of_every_unit_fill_a_range_without_gap_or_overlap() {
    for zone in ["UTC", "Asia/Kolkata", "Australia/Lord_Howe", "America/Santiago", "Pacific/Apia"] {
        let calendar = calendar(zone);
        let range = span("2026-01-03T10:45:00Z", "2027-02-07T03:15:00Z");
        for unit in [Unit::Hour, Unit::Day, Unit::Week, Unit::Month, Unit::Year] {
            let periods = calendar.periods(unit, range);
            assert!(periods.windows(2).all(|two| two[0].span.end == two[1].span.start), "{zone}");
            assert_eq!(periods[0].span.start, range.start);
            assert_eq!(periods[periods.len() - 1].span.end, range.end);
            let sum: i64 = periods.iter().map(|period| quarters(period.span)).sum();
            assert_eq!(sum, quarters(range), "{zone} {unit:?}");
        }
    }
}

#[test]
fn an_offset_beside_the_quarters_loses_and_doubles_none() {
    let calendar = calendar("+05:07");
    let days = calendar.periods(Unit::Day, span("2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z"));
    let mut next = days[0].span.quarters().start;
    for period in days {
        let range = period.span.quarters();
        assert_eq!(range.start, next);
        next = range.end;
    }
    assert_eq!(next, Quarter::of(at("2026-12-01T00:00:00Z")));
}

/// A Tuesday in Shanghai, 18:20 there.
const NOW: &str = "2026-11-24T10:20:00Z";

#[test]
fn times_are_read_as_people_write_them() {
    let calendar = calendar("Asia/Shanghai");
    for (text, instant) in [
        ("2026-11-24", "2026-11-23T16:00:00Z"),
        ("2026-11", "2026-10-31T16:00:00Z"),
        ("2026", "2025-12-31T16:00:00Z"),
        ("2026-11-24T10:15", "2026-11-24T02:15:00Z"),
        ("2026-11-24 10:15", "2026-11-24T02:15:00Z"),
        ("2026-11-24T10:15:00", "2026-11-24T02:15:00Z"),
        ("2026-11-24T10:15Z", "2026-11-24T10:15:00Z"),
        ("2026-11-24T10:15+05:30", "2026-11-24T04:45:00Z"),
        ("now", "2026-11-24T10:30:00Z"),
        ("today", "2026-11-23T16:00:00Z"),
        ("yesterday", "2026-11-22T16:00:00Z"),
        ("this-week", "2026-11-22T16:00:00Z"),
        ("last-week", "2026-11-15T16:00:00Z"),
        ("this-month", "2026-10-31T16:00:00Z"),
        ("last-month", "2026-09-30T16:00:00Z"),
        ("this-year", "2025-12-31T16:00:00Z"),
        ("last-year", "2024-12-31T16:00:00Z"),
        ("24h", "2026-11-23T10:00:00Z"),
        ("0d", "2026-11-23T16:00:00Z"),
        ("7d", "2026-11-16T16:00:00Z"),
        ("4w", "2026-10-26T16:00:00Z"),
        ("9mo", "2026-02-23T16:00:00Z"),
        ("1y", "2025-11-23T16:00:00Z"),
    ] {
        assert_eq!(calendar.parse(text, at(NOW)), Ok(at(instant)), "{text}");
    }
}

#[test]
fn what_is_no_time_is_told_what_is_understood() {
    let calendar = calendar("Asia/Shanghai");
    for text in [
        "",
        "tomorrow",
        "24.11.2026",
        "2026-11-31",
        "2026-13",
        "26-11-24",
        "2026-11-24-01",
        "7",
        "-7d",
        "7m",
        "9999999999d",
        "99999999999999999999h",
        "2026-11-24T25:00",
        "T10:15",
        "２０２６-11-24",
        "d",
    ] {
        let error = calendar.parse(text, at(NOW)).unwrap_err();
        assert_eq!(error, ParseError::NotATime(text.to_owned()));
        assert!(error.to_string().contains("2026-11-24T10:15"), "{error}");
    }
    let between = calendar.parse("2026-11-24T10:17", at(NOW)).unwrap_err();
    assert_eq!(
        between.to_string(),
        "`2026-11-24T10:17` is not on a quarter of an hour, and the history is kept in quarters; write \
         2026-11-24T10:15:00 or 2026-11-24T10:30:00"
    );
    assert!(Calendar::named("Asia/Nowhere").unwrap_err().to_string().contains("`Asia/Nowhere`"));
}

#[test]
fn span_needs_a_beginning_before_its_end() {
    let calendar = calendar("Asia/Shanghai");
    let otherwise = span("2026-11-23T16:00:00Z", "2026-11-24T16:00:00Z");
    let parse = |from, to| calendar.parse_span(from, to, otherwise, at(NOW));
    assert_eq!(parse(None, None), Ok(otherwise));
    let november = span("2026-10-31T16:00:00Z", "2026-11-30T16:00:00Z");
    assert_eq!(parse(Some("2026-11"), Some("2026-12")), Ok(november));
    assert_eq!(
        parse(Some("today"), Some("today")).unwrap_err().to_string(),
        "from 2026-11-24 00:00 +08:00 to 2026-11-24 00:00 +08:00 is no time at all: the end itself is not \
         included, so --to must be later than --from"
    );
}

#[test]
fn wall_clock_time_that_comes_twice_is_the_first_one() {
    let calendar = calendar("America/New_York");
    let read = |text| calendar.parse(text, at(NOW)).unwrap();
    assert_eq!(read("2026-11-01T01:30"), at("2026-11-01T05:30:00Z"));
    assert_eq!(read("2026-03-08T02:30"), at("2026-03-08T07:30:00Z"));
}
