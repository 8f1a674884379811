//! Typed events: the variant of an enum is the event's type, and its content the data.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, VariantAccess, Visitor};
use serde::ser::{self, Impossible, SerializeStructVariant, SerializeTupleVariant, Serializer};
use serde::{Deserialize, Serialize, forward_to_deserialize_any};
use serde_json::value::RawValue;

use crate::{Error, Event, EventBuilder, RecordedEvent, Result, Version};

/// The name of the variant and the JSON of its content. A variant without content gives `{}`, so that fields can be
/// added later.
pub(crate) fn encode<T: Serialize + ?Sized>(event: &T) -> Result<(&'static str, Vec<u8>)> {
    event.serialize(Encoder).map_err(|failed| match failed {
        Failed::NotAnEnum => Error::invalid_event("type", NOT_AN_ENUM),
        Failed::Json(error) => Error::invalid_event("data", format!("it cannot be written as JSON: {error}")),
        Failed::Other(reason) => Error::invalid_event("data", format!("it cannot be written: {reason}")),
    })
}

const NOT_AN_ENUM: &str = "a typed event is a variant of an enum with serde's default (external) tag; for anything else name the \
                           type with `Event::builder`";

impl Event {
    /// The event for a variant of a serde enum. Its type is the serde name of the variant (with `rename`,
    /// `rename_all`), its data the JSON of the variant's content. [`decode`](Event::decode) reads it back.
    ///
    /// JSON has no NaN and no infinity: such a float is written as `null`, and `decode` then fails if the type expects
    /// a plain float.
    ///
    /// For an id or metadata of your own, see [`Event::typed`].
    ///
    /// ```
    /// use eventstore_api::Event;
    ///
    /// #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    /// enum Order {
    ///     Placed { customer: String },
    ///     Paid { cents: u64 },
    ///     Shipped,
    /// }
    ///
    /// let event = Event::of("order-42", &Order::Paid { cents: 1200 })?;
    /// assert_eq!((event.event_type(), event.data()), ("Paid", br#"{"cents":1200}"#.as_slice()));
    /// assert_eq!(event.decode::<Order>()?, Order::Paid { cents: 1200 });
    /// # Ok::<(), eventstore_api::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::InvalidEvent`] if the value is not a variant of an enum, its content cannot be JSON (such as a map
    /// whose keys are not strings), or a limit is exceeded.
    pub fn of<T: Serialize + ?Sized>(aggregate_id: impl Into<String>, event: &T) -> Result<Event> {
        Event::typed(aggregate_id, event).build()
    }

    /// Starts an event like [`Event::of`], as a builder that takes an id, metadata and so on.
    ///
    /// ```
    /// # use eventstore_api::Event;
    /// # #[derive(serde::Serialize)] enum Order { Shipped }
    /// let event = Event::typed("order-42", &Order::Shipped).correlation_id("request-7").build()?;
    /// assert_eq!(event.correlation_id().as_deref(), Some("request-7"));
    /// # Ok::<(), eventstore_api::Error>(())
    /// ```
    pub fn typed<T: Serialize + ?Sized>(aggregate_id: impl Into<String>, event: &T) -> EventBuilder {
        EventBuilder::encoded(aggregate_id.into(), encode(event))
    }

    /// Reads the event as the variant of a serde enum that its type names: the reverse of [`Event::of`].
    ///
    /// serde's attributes map old shapes to new ones: `alias` for a renamed type or field, `default` for a field that
    /// was added later, `from` or `deserialize_with` for everything that needs code. A variant with `#[serde(other)]`
    /// accepts every type that the enum does not know, with any data.
    ///
    /// # Errors
    ///
    /// [`Error::Decode`] if the enum has no such variant, or the data do not have its shape.
    pub fn decode<'de, T: Deserialize<'de>>(&'de self) -> Result<T> {
        self.decode_at(None)
    }

    fn decode_at<'de, T: Deserialize<'de>>(&'de self, version: Option<Version>) -> Result<T> {
        T::deserialize(Decoder(self)).map_err(|source| self.not_decoded(version, source))
    }

    /// Reads the data as JSON, whatever the type.
    ///
    /// # Errors
    ///
    /// [`Error::Decode`] if the data are not what `T` expects.
    pub fn json<'de, T: Deserialize<'de>>(&'de self) -> Result<T> {
        serde_json::from_slice(self.data()).map_err(|source| self.not_decoded(None, source))
    }

    /// Reads the metadata as JSON.
    ///
    /// # Errors
    ///
    /// [`Error::Decode`] if the metadata are not what `T` expects.
    pub fn metadata_as<'de, T: Deserialize<'de>>(&'de self) -> Result<T> {
        serde_json::from_str(self.metadata()).map_err(|source| self.not_decoded(None, format!("metadata: {source}")))
    }

    /// `correlation_id` of the metadata, if it is a string: the id of what this event belongs to, such as a request or
    /// a business process.
    #[must_use]
    pub fn correlation_id(&self) -> Option<String> {
        self.metadata_text("correlation_id")
    }

    /// `causation_id` of the metadata, if it is a string: the id of the event or command that caused this event.
    #[must_use]
    pub fn causation_id(&self) -> Option<String> {
        self.metadata_text("causation_id")
    }

    /// A member of the metadata, if it is a string.
    fn metadata_text(&self, key: &str) -> Option<String> {
        let members: BTreeMap<Cow<'_, str>, &RawValue> = self.metadata_as().ok()?;
        serde_json::from_str(members.get(key)?.get()).ok()
    }

    fn not_decoded(&self, version: Option<Version>, source: impl Into<crate::Source>) -> Error {
        Error::Decode { version, event_type: self.event_type().to_owned(), source: source.into() }
    }
}

impl RecordedEvent {
    /// Like [`Event::decode`]; the error names the version.
    ///
    /// # Errors
    ///
    /// [`Error::Decode`].
    pub fn decode<'de, T: Deserialize<'de>>(&'de self) -> Result<T> {
        self.event.decode_at(Some(self.version))
    }
}

/// Why a value could not be encoded.
#[derive(Debug)]
enum Failed {
    NotAnEnum,
    Json(serde_json::Error),
    Other(String),
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failed::NotAnEnum => f.write_str(NOT_AN_ENUM),
            Failed::Json(error) => error.fmt(f),
            Failed::Other(reason) => f.write_str(reason),
        }
    }
}

impl std::error::Error for Failed {}

impl ser::Error for Failed {
    fn custom<T: fmt::Display>(reason: T) -> Self {
        Failed::Other(reason.to_string())
    }
}

impl From<serde_json::Error> for Failed {
    fn from(error: serde_json::Error) -> Self {
        Failed::Json(error)
    }
}

type Encoded = (&'static str, Vec<u8>);

/// Accepts a variant of an enum and nothing else.
struct Encoder;

macro_rules! refuse {
    ($($method:ident($($argument:ty),*) -> $result:ty;)*) => {
        $(fn $method(self, $(_: $argument),*) -> Result<$result, Failed> { Err(Failed::NotAnEnum) })*
    };
}

impl Serializer for Encoder {
    type Ok = Encoded;
    type Error = Failed;
    type SerializeSeq = Impossible<Encoded, Failed>;
    type SerializeTuple = Impossible<Encoded, Failed>;
    type SerializeTupleStruct = Impossible<Encoded, Failed>;
    type SerializeTupleVariant = Parts;
    type SerializeMap = Impossible<Encoded, Failed>;
    type SerializeStruct = Impossible<Encoded, Failed>;
    type SerializeStructVariant = Parts;

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Result<Encoded, Failed> {
        Ok((variant, b"{}".to_vec()))
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<Encoded, Failed> {
        Ok((variant, serde_json::to_vec(value)?))
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Parts, Failed> {
        Ok(Parts { variant, json: vec![b'['] })
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Parts, Failed> {
        Ok(Parts { variant, json: vec![b'{'] })
    }

    /// A struct with one field, an enum, is serialized as that enum, as in serde_json.
    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<Encoded, Failed> {
        value.serialize(self)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, _: &T) -> Result<Encoded, Failed> {
        Err(Failed::NotAnEnum)
    }

    refuse! {
        serialize_bool(bool) -> Encoded;
        serialize_i8(i8) -> Encoded;
        serialize_i16(i16) -> Encoded;
        serialize_i32(i32) -> Encoded;
        serialize_i64(i64) -> Encoded;
        serialize_u8(u8) -> Encoded;
        serialize_u16(u16) -> Encoded;
        serialize_u32(u32) -> Encoded;
        serialize_u64(u64) -> Encoded;
        serialize_f32(f32) -> Encoded;
        serialize_f64(f64) -> Encoded;
        serialize_char(char) -> Encoded;
        serialize_str(&str) -> Encoded;
        serialize_bytes(&[u8]) -> Encoded;
        serialize_none() -> Encoded;
        serialize_unit() -> Encoded;
        serialize_unit_struct(&'static str) -> Encoded;
        serialize_seq(Option<usize>) -> Impossible<Encoded, Failed>;
        serialize_tuple(usize) -> Impossible<Encoded, Failed>;
        serialize_tuple_struct(&'static str, usize) -> Impossible<Encoded, Failed>;
        serialize_map(Option<usize>) -> Impossible<Encoded, Failed>;
        serialize_struct(&'static str, usize) -> Impossible<Encoded, Failed>;
    }
}

/// The JSON of a variant with several fields, while it is written.
struct Parts {
    variant: &'static str,
    json: Vec<u8>,
}

impl Parts {
    fn add<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Failed> {
        Ok(serde_json::to_writer(&mut self.json, value)?)
    }

    /// Writes a comma, unless this is the first field.
    fn begin_field(&mut self) {
        if self.json.len() > 1 {
            self.json.push(b',');
        }
    }

    fn end(mut self, bracket: u8) -> Encoded {
        self.json.push(bracket);
        (self.variant, self.json)
    }
}

impl SerializeTupleVariant for Parts {
    type Ok = Encoded;
    type Error = Failed;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Failed> {
        self.begin_field();
        self.add(value)
    }

    fn end(self) -> Result<Encoded, Failed> {
        Ok(Parts::end(self, b']'))
    }
}

impl SerializeStructVariant for Parts {
    type Ok = Encoded;
    type Error = Failed;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), Failed> {
        self.begin_field();
        self.add(key)?;
        self.json.push(b':');
        self.add(value)
    }

    fn end(self) -> Result<Encoded, Failed> {
        Ok(Parts::end(self, b'}'))
    }
}

/// Presents an event as a variant of an enum.
struct Decoder<'de>(&'de Event);

impl<'de> Deserializer<'de> for Decoder<'de> {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(de::Error::custom(
            "an event is decoded as an enum with serde's default (external) tag; read the data alone with `Event::json`",
        ))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        visitor.visit_enum(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct seq tuple
        tuple_struct map struct identifier ignored_any
    }
}

impl<'de> EnumAccess<'de> for Decoder<'de> {
    type Error = serde_json::Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Self::Error> {
        let name: StrDeserializer<'de, serde_json::Error> = self.0.event_type().into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Decoder<'de> {
    type Error = serde_json::Error;

    /// Accepts any data: later versions of the program may have added fields to the variant.
    fn unit_variant(self) -> Result<(), Self::Error> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Self::Error> {
        let mut json = serde_json::Deserializer::from_slice(self.0.data());
        let value = seed.deserialize(&mut json)?;
        json.end().map(|()| value)
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Self::Error> {
        let mut json = serde_json::Deserializer::from_slice(self.0.data());
        let value = json.deserialize_tuple(len, visitor)?;
        json.end().map(|()| value)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        let mut json = serde_json::Deserializer::from_slice(self.0.data());
        let value = json.deserialize_struct("", fields, visitor)?;
        json.end().map(|()| value)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::Revision;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Shape {
        Nothing,
        One(u32),
        Several(u32, String),
        Named {
            #[serde(rename = "first-name")]
            name: String,
            #[serde(default, skip_serializing_if = "Option::is_none")]
            age: Option<u8>,
        },
        Empty {},
        Nested(Inner),
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "kind")]
    enum Inner {
        A { x: i8 },
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Wrapped(Shape);

    fn round_trip(value: &Shape) -> (String, String) {
        let event = Event::of("a", value).expect("valid");
        assert_eq!(&event.decode::<Shape>().expect("decodes"), value);
        (event.event_type().to_owned(), String::from_utf8(event.data().to_vec()).expect("JSON"))
    }

    fn stored(event_type: &str, data: &str) -> RecordedEvent {
        let event = Event::builder(event_type, "a").data(data.to_owned()).build().expect("valid");
        RecordedEvent::new(Version::new(7), Revision::new(1), SystemTime::UNIX_EPOCH, event)
    }

    #[test]
    fn every_kind_of_variant_comes_back() {
        let named = |age| Shape::Named { name: "Zoë \"Z\"".into(), age };
        let cases = [
            (Shape::Nothing, "nothing", "{}"),
            (Shape::One(7), "one", "7"),
            (Shape::Several(7, "x".into()), "several", r#"[7,"x"]"#),
            (named(None), "named", r#"{"first-name":"Zoë \"Z\""}"#),
            (named(Some(3)), "named", r#"{"first-name":"Zoë \"Z\"","age":3}"#),
            (Shape::Empty {}, "empty", "{}"),
            (Shape::Nested(Inner::A { x: -1 }), "nested", r#"{"kind":"A","x":-1}"#),
        ];
        for (value, event_type, data) in cases {
            assert_eq!(round_trip(&value), (event_type.to_owned(), data.to_owned()));
            // As serde_json writes it, apart from the enclosing variant.
            let json = serde_json::to_value(&value).expect("JSON");
            let inner = json.get(event_type).cloned().unwrap_or_else(|| serde_json::json!({}));
            assert_eq!(serde_json::from_str::<serde_json::Value>(data).expect("JSON"), inner);
        }
        let wrapped = Wrapped(Shape::One(1));
        let event = Event::of("a", &wrapped).expect("valid");
        assert_eq!((event.event_type(), event.decode().ok()), ("one", Some(wrapped)));
    }

    #[test]
    fn what_is_no_variant_is_refused() {
        let field = |refused: Result<Event>| match refused {
            Err(Error::InvalidEvent { field, .. }) => field,
            other => panic!("expected InvalidEvent, got {other:?}"),
        };
        assert_eq!(field(Event::of("a", "text")), "type");
        assert_eq!(field(Event::of("a", &Inner::A { x: 1 })), "type");
        assert_eq!(field(Event::of("a", &Some(Shape::Nothing))), "type");
        assert_eq!(field(Event::of("", &Shape::Nothing)), "aggregate_id");
        #[derive(Serialize)]
        enum NoJson {
            Map(BTreeMap<(u8, u8), u8>),
        }
        assert_eq!(field(Event::of("a", &NoJson::Map([((1, 2), 3)].into()))), "data");
    }

    #[test]
    fn an_unknown_type_and_unreadable_data_say_which_event_it_was() {
        for (recorded, reason) in [
            (stored("Unheard", "{}"), "unknown variant `Unheard`"),
            (stored("one", r#""x""#), "invalid type: string \"x\""),
            (stored("one", "1 2"), "trailing characters"),
            (stored("named", "{}"), "missing field `first-name`"),
            (stored("one", ""), "EOF"),
        ] {
            match recorded.decode::<Shape>() {
                Err(error @ Error::Decode { version: Some(Version { .. }), .. }) => {
                    let text = error.to_string();
                    assert!(text.contains("at version 7") && text.contains(reason), "{text}");
                }
                other => panic!("expected Decode, got {other:?}"),
            }
        }
        assert!(matches!(stored("one", "1").decode::<u32>(), Err(Error::Decode { .. })));
        assert!(matches!(stored("one", "x").event.json::<u32>(), Err(Error::Decode { version: None, .. })));
    }

    #[test]
    fn old_shapes_become_new_ones() {
        #[derive(Debug, PartialEq, Deserialize)]
        enum Order {
            #[serde(alias = "OrderPaid")]
            Paid {
                #[serde(alias = "amount")]
                cents: u64,
                #[serde(default = "euro")]
                currency: String,
            },
            #[serde(other)]
            Unknown,
        }
        fn euro() -> String {
            "EUR".to_owned()
        }
        let paid = Order::Paid { cents: 5, currency: "EUR".into() };
        assert_eq!(stored("OrderPaid", r#"{"amount":5}"#).decode::<Order>().ok(), Some(paid));
        assert_eq!(stored("Whatever", "\u{0}not JSON").decode::<Order>().ok(), Some(Order::Unknown));
    }

    #[test]
    fn a_variant_without_content_may_get_fields_later_and_lose_them_again() {
        #[derive(Debug, PartialEq, Deserialize)]
        #[serde(rename_all = "snake_case")]
        enum Later {
            Nothing {
                #[serde(default)]
                added: u8,
            },
        }
        let event = Event::of("a", &Shape::Nothing).expect("valid");
        assert_eq!(event.decode::<Later>().ok(), Some(Later::Nothing { added: 0 }));
        assert_eq!(stored("nothing", r#"{"added":1}"#).decode::<Shape>().ok(), Some(Shape::Nothing));
    }

    #[test]
    fn a_float_comes_back_to_its_last_digit() {
        #[derive(Serialize, Deserialize)]
        enum Measured {
            Degrees(f64),
        }
        let mut bits = 1_u64;
        for _ in 0..20_000 {
            bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let degrees = f64::from_bits(bits);
            if degrees.is_finite() {
                let event = Event::of("a", &Measured::Degrees(degrees)).expect("valid");
                let Measured::Degrees(read) = event.decode().expect("decodes");
                assert_eq!(read.to_bits(), bits, "{degrees:e}");
            }
        }
    }

    #[test]
    fn what_serde_can_put_into_a_variant_comes_back() {
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        struct Common {
            by: String,
        }
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        enum Odd<T> {
            Generic(T),
            Flat {
                #[serde(flatten)]
                common: Common,
                x: u8,
            },
            Wide(i128),
            Keys(BTreeMap<u8, i8>),
            Unit(()),
            Maybe(Option<Box<Odd<T>>>),
            NoFields(),
            Skipped {
                #[serde(skip)]
                x: u8,
                y: u8,
            },
        }
        let common = Common { by: "me".into() };
        for odd in [
            Odd::Generic(common.clone()),
            Odd::Flat { common: common.clone(), x: 1 },
            Odd::Wide(i128::MIN),
            Odd::Keys([(1, -1)].into()),
            Odd::Unit(()),
            Odd::Maybe(None),
            Odd::Maybe(Some(Box::new(Odd::Flat { common, x: 1 }))),
            Odd::NoFields(),
            Odd::Skipped { x: 0, y: 1 },
        ] {
            let event = Event::of("a", &odd).expect("valid");
            assert_eq!(event.decode::<Odd<Common>>().expect("decodes"), odd);
        }
    }

    #[test]
    fn data_can_be_borrowed() {
        #[derive(Deserialize)]
        enum Borrowed<'a> {
            Named { name: &'a str },
        }
        let recorded = stored("Named", r#"{"name":"x"}"#);
        let Borrowed::Named { name } = recorded.decode().expect("decodes");
        assert_eq!(name, "x");
    }

    #[test]
    fn causes_go_from_event_to_event() {
        let request = Event::typed("a", &Shape::Nothing).correlation_id("request-7").build().expect("valid");
        let next = Event::typed("b", &Shape::Nothing).caused_by(&request).build().expect("valid");
        assert_eq!(next.correlation_id().as_deref(), Some("request-7"));
        assert_eq!(next.causation_id().as_deref(), Some(request.id()));
        let first = Event::of("a", &Shape::Nothing).expect("valid");
        assert_eq!((first.correlation_id(), first.causation_id()), (None, None));
        let next = Event::typed("b", &Shape::Nothing).caused_by(&first).build().expect("valid");
        assert_eq!(next.correlation_id().as_deref(), Some(first.id()));
        let builder = || Event::builder("T", "a");
        let both = builder().metadata(&serde_json::json!({"by": "me"})).correlation_id("c").causation_id("x").build();
        assert_eq!(both.expect("valid").metadata(), r#"{"by":"me","correlation_id":"c","causation_id":"x"}"#);
        let odd = builder().metadata_json(r#"{"correlation_id":7}"#).build().expect("valid");
        assert_eq!(odd.correlation_id(), None);
        let replaced = builder().metadata_json(r#"{ "correlation_id" : "old" }"#).correlation_id("new").build();
        assert_eq!(replaced.expect("valid").metadata(), r#"{"correlation_id":"new"}"#);
    }
}
