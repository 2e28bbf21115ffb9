use crate::model::{NetworkConfig, SamLstConfig};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt::Debug;
use std::marker::PhantomData;

/// The name of a method in settings: [`NetworkConfig::METHOD`] of `C`.
pub struct MethodName<C>(PhantomData<fn() -> C>);

impl<C> MethodName<C> {
    /// The name.
    pub const fn new() -> Self {
        Self(PhantomData)
    }
}

/// The message for settings of another method than that of `C`.
pub(super) fn other_method<C: NetworkConfig>(found: &str) -> String {
    format!("these are settings of the method `{found}`, but the method is `{}`", C::METHOD)
}

impl<C: NetworkConfig> MethodName<C> {
    pub(super) fn is_ladder(&self) -> bool {
        C::METHOD == SamLstConfig::METHOD
    }
}

impl<C> Default for MethodName<C> {
    fn default() -> Self {
        Self::new()
    }
}

impl<C> Clone for MethodName<C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C> Copy for MethodName<C> {}

impl<C> PartialEq for MethodName<C> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<C> Debug for MethodName<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MethodName")
    }
}

impl<C: NetworkConfig> Serialize for MethodName<C> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(C::METHOD)
    }
}

impl<'de, C: NetworkConfig> Deserialize<'de> for MethodName<C> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        if name == C::METHOD {
            return Ok(Self::new());
        }
        Err(D::Error::custom(other_method::<C>(&name)))
    }
}
