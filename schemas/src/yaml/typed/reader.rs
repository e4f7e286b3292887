//! The deserializer over a place in the tree.

use serde::de::{Deserializer, Visitor};

use super::access::{Choice, Entries, Items};
use super::{At, NodeId, Session, Trouble};
use crate::Problem;
use crate::problem::{hint, listed, nearest};
use crate::yaml::node::{Entry, Place, Scalar, ScalarKind, Value};
use crate::yaml::stand_in::StandIn;

/// Reads one place.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    pub(super) place: Place<'a>,
    pub(super) session: &'a Session,
}

impl<'a> Reader<'a> {
    pub(super) fn child(self, place: Place<'a>) -> Self {
        Self {
            place,
            session: self.session,
        }
    }

    /// Whether the value was reported and a stand-in must do.
    pub(super) fn is_wrong(&self) -> bool {
        let node = self.place.node;
        let is_unresolved =
            matches!(&node.value, Value::Scalar(scalar) if scalar.kind == ScalarKind::Unresolved);
        is_unresolved || self.session.wrong.contains(&std::ptr::from_ref(node))
    }

    /// Gives a mistake its place, unless it has one from further inside.
    pub(super) fn locate(&self, mut trouble: Trouble) -> Trouble {
        if trouble.at.is_none() {
            let span = if trouble.missing.is_some() {
                self.place.key_span
            } else {
                self.place.span()
            };
            trouble.at = Some(At {
                node: self.place.node,
                span,
            });
            self.place.name.clone_into(&mut trouble.owner);
        }
        trouble
    }

    pub(super) fn wrong(&self, wanted: &str) -> Trouble {
        let found = self.place.node.describe();
        self.locate(
            Trouble::new(
                "wrong-type",
                format!("`{}` must be {wanted}, not {found}", self.place.name),
            )
            .labelled(format!("expected {wanted}")),
        )
    }

    fn scalar(&self, wanted: &str) -> Result<&'a Scalar, Trouble> {
        match &self.place.node.value {
            Value::Scalar(scalar) => Ok(scalar),
            _ => Err(self.wrong(wanted)),
        }
    }

    fn integer(&self, least: i128, most: i128) -> Result<i128, Trouble> {
        let wanted = match least {
            0 => "a whole number of at least 0".to_owned(),
            _ => "a whole number".to_owned(),
        };
        match self.scalar(&wanted)?.kind {
            ScalarKind::Integer(value) if value > most => {
                Err(self.wrong(&format!("a whole number of at most {most}")))
            }
            ScalarKind::Integer(value) if value < least && least < 0 => {
                Err(self.wrong(&format!("a whole number of at least {least}")))
            }
            ScalarKind::Integer(value) if value >= least => Ok(value),
            _ => Err(self.wrong(&wanted)),
        }
    }

    fn float(&self) -> Result<f64, Trouble> {
        const WANTED: &str = "a number";
        match self.scalar(WANTED)?.kind {
            ScalarKind::Float(value) if value.is_finite() => Ok(value),
            #[expect(
                clippy::cast_precision_loss,
                reason = "a whole number where a fraction may stand"
            )]
            ScalarKind::Integer(value) => Ok(value as f64),
            _ => Err(self.wrong(WANTED)),
        }
    }

    pub(super) fn fields<V: Visitor<'a>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Trouble> {
        let Some(entries) = self.place.node.entries() else {
            return Err(self
                .wrong("a mapping")
                .helped(format!("its keys are {}", listed(fields))));
        };
        let node: NodeId = self.place.node;
        let mut known = Vec::with_capacity(entries.len());
        for entry in entries {
            if fields.contains(&entry.key.as_str()) {
                known.push(entry);
                continue;
            }
            if let Some(field) = nearest(&entry.key, fields) {
                self.session.meant.borrow_mut().insert((node, field));
            }
            let message = format!("`{}` has no key `{}`", self.place.name, entry.key);
            self.session.report(
                Problem::new("unknown-key", message, entry.key_span)
                    .with_label("unknown key")
                    .with_help(hint(&entry.key, fields, "keys")),
            );
        }
        let missing = self.session.lacks(node);
        let access = Entries {
            reader: self,
            entries: known.into_iter(),
            value: None,
            missing,
        };
        visitor
            .visit_map(access)
            .map_err(|trouble| self.locate(trouble))
    }

    fn items<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Trouble> {
        match &self.place.node.value {
            Value::List(items) => visitor
                .visit_seq(Items {
                    reader: self,
                    items: items.iter(),
                })
                .map_err(|trouble| self.locate(trouble)),
            Value::Scalar(Scalar { kind, text }) if *kind != ScalarKind::Null => {
                Err(self.wrong("a list").helped(format!("write `[{text}]`")))
            }
            _ => Err(self.wrong("a list")),
        }
    }

    fn choice(
        &self,
        variants: &'static [&'static str],
    ) -> Result<(&'a str, Option<&'a Entry>), Trouble> {
        let one_of = || format!("one of {}", listed(variants));
        let (name, entry, span) = match &self.place.node.value {
            Value::Scalar(scalar) if scalar.kind != ScalarKind::Null => {
                (scalar.text.as_str(), None, self.place.node.span)
            }
            Value::Map(entries) if entries.len() == 1 => (
                entries[0].key.as_str(),
                Some(&entries[0]),
                entries[0].key_span,
            ),
            Value::Map(entries) if entries.len() > 1 => {
                let message = format!(
                    "`{}` takes exactly one choice, and here are {}",
                    self.place.name,
                    entries.len()
                );
                let at = At {
                    node: self.place.node,
                    span: entries[1].key_span,
                };
                return Err(Trouble {
                    at: Some(at),
                    ..Trouble::new("wrong-type", message).labelled("second choice")
                });
            }
            _ => return Err(self.wrong(&one_of())),
        };
        if variants.contains(&name) {
            return Ok((name, entry));
        }
        let at = At {
            node: self.place.node,
            span,
        };
        let trouble = Trouble::new(
            "unknown-choice",
            format!("`{}` has no choice `{name}`", self.place.name),
        )
        .labelled("unknown choice")
        .helped(hint(name, variants, "choices"));
        Err(Trouble {
            at: Some(at),
            ..trouble
        })
    }
}

macro_rules! or_stand_in {
    ($self:ident, $call:expr) => {
        if $self.is_wrong() {
            return $call.map_err(Trouble::artificial);
        }
    };
}

macro_rules! integers {
    ($($method:ident $visit:ident $type:ty;)*) => {$(
        fn $method<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Trouble> {
            or_stand_in!(self, StandIn.$method(visitor));
            let value = self.integer(<$type>::MIN.into(), <$type>::MAX.into())?;
            let value = <$type>::try_from(value).expect("the range was checked");
            visitor.$visit(value).map_err(|trouble| self.locate(trouble))
        }
    )*};
}

impl<'a> Deserializer<'a> for Reader<'a> {
    type Error = Trouble;

    integers! {
        deserialize_u8 visit_u8 u8;
        deserialize_u16 visit_u16 u16;
        deserialize_u32 visit_u32 u32;
        deserialize_u64 visit_u64 u64;
        deserialize_i8 visit_i8 i8;
        deserialize_i16 visit_i16 i16;
        deserialize_i32 visit_i32 i32;
        deserialize_i64 visit_i64 i64;
    }

    fn deserialize_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Trouble> {
        or_stand_in!(self, StandIn.deserialize_any(visitor));
        let result = match &self.place.node.value {
            Value::Map(_) => return self.deserialize_map(visitor),
            Value::List(_) => return self.deserialize_seq(visitor),
            Value::Scalar(scalar) => match scalar.kind {
                ScalarKind::Null => visitor.visit_unit(),
                ScalarKind::Bool(value) => visitor.visit_bool(value),
                ScalarKind::Integer(value) => match (u64::try_from(value), i64::try_from(value)) {
                    (Ok(value), _) => visitor.visit_u64(value),
                    (_, Ok(value)) => visitor.visit_i64(value),
                    _ => visitor.visit_i128(value),
                },
                ScalarKind::Float(value) => visitor.visit_f64(value),
                ScalarKind::Text | ScalarKind::Unresolved => visitor.visit_str(&scalar.text),
            },
        };
        result.map_err(|trouble| self.locate(trouble))
    }

    fn deserialize_bool<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Trouble> {
        or_stand_in!(self, StandIn.deserialize_bool(visitor));
        match self.scalar("`true` or `false`")?.kind {
            ScalarKind::Bool(value) => visitor
                .visit_bool(value)
                .map_err(|trouble| self.locate(trouble)),
            _ => Err(self.wrong("`true` or `false`")),
        }
    }

    fn deserialize_f32<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Trouble> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Trouble> {
        or_stand_in!(self, StandIn.deserialize_f64(visitor));
        visitor
            .visit_f64(self.float()?)
            .map_err(|trouble| self.locate(trouble))
    }

    fn deserialize_char<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Trouble> {
        self.deserialize_str(visitor)
    }

    fn deserialize_str<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Trouble> {
        or_stand_in!(self, StandIn.deserialize_str(visitor));
        let scalar = self.scalar("text")?;
        if scalar.kind == ScalarKind::Null {
            return Err(self.wrong("text"));
        }
        visitor
            .visit_str(&scalar.text)
            .map_err(|trouble| self.locate(trouble))
    }

    fn deserialize_string<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Trouble> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Trouble> {
        self.deserialize_str(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Trouble> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Trouble> {
        match &self.place.node.value {
            Value::Scalar(scalar) if scalar.kind == ScalarKind::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_unit<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Trouble> {
        or_stand_in!(self, StandIn.deserialize_unit(visitor));
        match &self.place.node.value {
            Value::Scalar(scalar) if scalar.kind == ScalarKind::Null => visitor.visit_unit(),
            Value::Map(entries) if entries.is_empty() => visitor.visit_unit(),
            _ => Err(self.wrong("`{}`")),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'a>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Trouble> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'a>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Trouble> {
        visitor
            .visit_newtype_struct(self)
            .map_err(|trouble| self.locate(trouble))
    }

    fn deserialize_seq<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Trouble> {
        or_stand_in!(self, StandIn.deserialize_seq(visitor));
        self.items(visitor)
    }

    fn deserialize_tuple<V: Visitor<'a>>(
        self,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Trouble> {
        or_stand_in!(self, StandIn.deserialize_tuple(len, visitor));
        match &self.place.node.value {
            Value::List(items) if items.len() != len => {
                Err(self.wrong(&format!("a list of {len} items")))
            }
            _ => self.items(visitor),
        }
    }

    fn deserialize_tuple_struct<V: Visitor<'a>>(
        self,
        _name: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Trouble> {
        self.deserialize_tuple(len, visitor)
    }

    fn deserialize_map<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Trouble> {
        or_stand_in!(self, StandIn.deserialize_map(visitor));
        let Some(entries) = self.place.node.entries() else {
            return Err(self.wrong("a mapping"));
        };
        let known: Vec<&Entry> = entries.iter().collect();
        let access = Entries {
            reader: self,
            entries: known.into_iter(),
            value: None,
            missing: Vec::new(),
        };
        visitor
            .visit_map(access)
            .map_err(|trouble| self.locate(trouble))
    }

    fn deserialize_struct<V: Visitor<'a>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Trouble> {
        or_stand_in!(self, StandIn.deserialize_struct(name, fields, visitor));
        self.fields(fields, visitor)
    }

    fn deserialize_enum<V: Visitor<'a>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Trouble> {
        or_stand_in!(self, StandIn.deserialize_enum(name, variants, visitor));
        let (variant, entry) = self.choice(variants)?;
        visitor
            .visit_enum(Choice {
                reader: self,
                variant,
                entry,
            })
            .map_err(|trouble| self.locate(trouble))
    }

    fn deserialize_identifier<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Trouble> {
        self.deserialize_str(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Trouble> {
        visitor.visit_unit()
    }
}
