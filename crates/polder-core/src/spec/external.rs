//! `schedule: external`: an orchestrator such as Airflow has the clock of a table, and Polder none.

use std::fmt;

use schemars::{Schema, SchemaGenerator, json_schema};
use serde::de::value::{MapAccessDeserializer, MapDeserializer};
use serde::de::{MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

use super::ScheduleSpec;

/// In the place of a cron text, or of a whole schedule.
pub(super) const EXTERNAL: &str = "external";

/// A schedule, or `external` alone for one of `cron: external`.
///
/// # Errors
/// Those of the deserializer.
pub(super) fn schedule_or_external<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<ScheduleSpec>, D::Error> {
    deserializer.deserialize_any(ScheduleVisitor)
}

/// What [`schedule_or_external`] reads.
pub(super) fn schedule_or_external_schema(generator: &mut SchemaGenerator) -> Schema {
    let schedule = generator.subschema_for::<ScheduleSpec>();
    json_schema!({ "anyOf": [schedule, { "const": EXTERNAL }, { "type": "null" }] })
}

struct ScheduleVisitor;

impl<'de> Visitor<'de> for ScheduleVisitor {
    type Value = Option<ScheduleSpec>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a schedule (a map with cron), or external")
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
        if text != EXTERNAL {
            return Err(E::invalid_value(Unexpected::Str(text), &self));
        }
        let long = MapDeserializer::<_, E>::new(std::iter::once(("cron", EXTERNAL)));
        ScheduleSpec::deserialize(long).map(Some)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        ScheduleSpec::deserialize(MapAccessDeserializer::new(map)).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[derive(Deserialize)]
    struct Holder {
        #[serde(default, deserialize_with = "schedule_or_external")]
        schedule: Option<ScheduleSpec>,
    }

    fn read(document: Value) -> Result<Option<ScheduleSpec>, String> {
        let holder = serde_json::from_value::<Holder>(document);
        holder.map(|holder| holder.schedule).map_err(|error| error.to_string())
    }

    #[test]
    fn a_clock_that_is_somebody_elses_has_no_times() {
        let org = "401".parse().expect("id");
        let short = read(json!({ "schedule": "external" })).expect("external").expect("some");
        let long = read(json!({ "schedule": { "cron": "external" } })).expect("external");
        assert_eq!(Some(&short), long.as_ref());
        assert_eq!(short.next_ms(&org, 0), None);
        // As it is stored.
        let stored = serde_json::to_value(&short).expect("stored");
        assert_eq!(stored["cron"], "external");
        assert_eq!(read(json!({ "schedule": stored })), Ok(Some(short)));
        // Validations may stay Polder's.
        let own = json!({ "schedule": { "cron": "external", "validate_at": "@daily" } });
        let own = read(own).expect("schedule").expect("some");
        assert_eq!(own.next_ms(&org, 0), None);
        assert_eq!(own.next_validation_ms(&org, 0), Some(24 * 3_600_000));
        for none in [json!({}), json!({ "schedule": null })] {
            assert_eq!(read(none), Ok(None));
        }
        for wrong in ["Airflow", "@daily", ""] {
            let error = read(json!({ "schedule": wrong })).expect_err(wrong);
            assert!(error.contains("or external"), "{error}");
        }
    }
}
