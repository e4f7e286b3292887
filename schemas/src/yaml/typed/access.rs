//! Mappings, lists and choices, piece by piece.

use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};

use super::Trouble;
use super::reader::Reader;
use crate::yaml::node::{Entry, Node, Place, ScalarKind, Value};
use crate::yaml::stand_in::StandIn;

/// Entries of a mapping, then stand-ins for the keys that it lacks.
pub(super) struct Entries<'a> {
    pub(super) reader: Reader<'a>,
    pub(super) entries: std::vec::IntoIter<&'a Entry>,
    pub(super) value: Option<&'a Entry>,
    pub(super) missing: Vec<&'static str>,
}

impl<'a> MapAccess<'a> for Entries<'a> {
    type Error = Trouble;

    fn next_key_seed<K: DeserializeSeed<'a>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Trouble> {
        let key: StrDeserializer<'_, Trouble> = if let Some(entry) = self.entries.next() {
            self.value = Some(entry);
            entry.key.as_str().into_deserializer()
        } else if let Some(field) = self.missing.pop() {
            field.into_deserializer()
        } else {
            return Ok(None);
        };
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'a>>(&mut self, seed: S) -> Result<S::Value, Trouble> {
        match self.value.take() {
            Some(entry) => {
                let reader = self.reader.child(entry.place());
                seed.deserialize(reader)
                    .map_err(|trouble| reader.locate(trouble))
            }
            None => seed.deserialize(StandIn).map_err(Trouble::artificial),
        }
    }
}

pub(super) struct Items<'a> {
    pub(super) reader: Reader<'a>,
    pub(super) items: std::slice::Iter<'a, Node>,
}

impl<'a> SeqAccess<'a> for Items<'a> {
    type Error = Trouble;

    fn next_element_seed<S: DeserializeSeed<'a>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Trouble> {
        let Some(node) = self.items.next() else {
            return Ok(None);
        };
        let reader = self.reader.child(Place {
            node,
            name: self.reader.place.name,
            key_span: node.span,
        });
        seed.deserialize(reader)
            .map(Some)
            .map_err(|trouble| reader.locate(trouble))
    }
}

/// A choice: a word, or a mapping with one key.
pub(super) struct Choice<'a> {
    pub(super) reader: Reader<'a>,
    pub(super) variant: &'a str,
    pub(super) entry: Option<&'a Entry>,
}

impl Choice<'_> {
    fn without_options(&self) -> Trouble {
        let variant = self.variant;
        let message = format!(
            "the choice `{variant}` of `{}` takes options",
            self.reader.place.name
        );
        self.reader.locate(
            Trouble::new("wrong-type", message)
                .labelled("without options")
                .helped(format!("write `{variant}: {{ ... }}`")),
        )
    }

    fn content(&self) -> Result<Self, Trouble> {
        match self.entry {
            Some(entry) => Ok(Self {
                reader: self.reader.child(entry.place()),
                variant: self.variant,
                entry: self.entry,
            }),
            None => Err(self.without_options()),
        }
    }
}

impl<'a> EnumAccess<'a> for Choice<'a> {
    type Error = Trouble;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'a>>(self, seed: S) -> Result<(S::Value, Self), Trouble> {
        let variant: StrDeserializer<'_, Trouble> = self.variant.into_deserializer();
        Ok((seed.deserialize(variant)?, self))
    }
}

impl<'a> VariantAccess<'a> for Choice<'a> {
    type Error = Trouble;

    fn unit_variant(self) -> Result<(), Trouble> {
        let Some(entry) = self.entry else {
            return Ok(());
        };
        let reader = self.reader.child(entry.place());
        match &entry.value.value {
            Value::Scalar(scalar) if scalar.kind == ScalarKind::Null => Ok(()),
            Value::Map(entries) if entries.is_empty() => Ok(()),
            _ if reader.is_wrong() => Ok(()),
            _ => {
                let message = format!("the choice `{}` takes no options", self.variant);
                Err(reader
                    .locate(Trouble::new("wrong-type", message).labelled("unexpected options")))
            }
        }
    }

    fn newtype_variant_seed<S: DeserializeSeed<'a>>(self, seed: S) -> Result<S::Value, Trouble> {
        seed.deserialize(self.content()?.reader)
    }

    fn tuple_variant<V: Visitor<'a>>(self, len: usize, visitor: V) -> Result<V::Value, Trouble> {
        self.content()?.reader.deserialize_tuple(len, visitor)
    }

    fn struct_variant<V: Visitor<'a>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Trouble> {
        let reader = self.content()?.reader;
        if reader.is_wrong() {
            return StandIn
                .deserialize_struct("", fields, visitor)
                .map_err(Trouble::artificial);
        }
        reader.fields(fields, visitor)
    }
}
