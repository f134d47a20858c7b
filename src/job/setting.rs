//! A sampling key as written: a value, or `{ column = "…", default = … }`.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};

/// A value for all rows, or a column with an optional value for rows that have none.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Setting<T> {
    pub(super) column: Option<String>,
    pub(super) default: Option<T>,
}

impl<T> Setting<T> {
    /// The same setting of another type.
    pub(super) fn map<U>(self, change: impl FnOnce(T) -> U) -> Setting<U> {
        Setting { column: self.column, default: self.default.map(change) }
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Setting<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = toml::Value::deserialize(deserializer)?;
        let parse = |value: toml::Value| {
            T::deserialize(value).map_err(|error| D::Error::custom(error.message()))
        };
        let mut table = match value {
            toml::Value::Table(table) if table.contains_key("column") => table,
            // Some values are tables themselves.
            value => {
                let is_table = value.is_table();
                let default = parse(value).map_err(|error| match is_table {
                    true => D::Error::custom(format!(
                        "{error}; or expected `{{ column = \"…\", default = … }}`"
                    )),
                    false => error,
                })?;
                return Ok(Self { column: None, default: Some(default) });
            }
        };
        let column = match table.remove("column") {
            Some(toml::Value::String(column)) => Some(column),
            _ => return Err(D::Error::custom("expected `{ column = \"…\", default = … }`")),
        };
        let default = table.remove("default").map(parse).transpose()?;
        match table.keys().next() {
            Some(key) => Err(D::Error::custom(format!(
                "unknown key `{key}`, expected `column` and `default`"
            ))),
            None => Ok(Self { column, default }),
        }
    }
}

impl<T: JsonSchema> JsonSchema for Setting<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("SettingOf{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let value = generator.subschema_for::<T>();
        json_schema!({
            "anyOf": [
                value,
                {
                    "type": "object",
                    "properties": { "column": { "type": "string" }, "default": value },
                    "required": ["column"],
                    "additionalProperties": false,
                },
            ]
        })
    }
}
