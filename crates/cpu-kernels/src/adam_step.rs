/// The factors of a step, by which Adam and AdamW differ:
///
/// ```text
/// first  = betas[0] * first  + (1 - betas[0]) * gradient
/// second = betas[1] * second + (1 - betas[1]) * gradient ^ 2
/// change = first * first_factor / first_divisor / (sqrt(second / second_divisor) + epsilon)
/// parameter = parameter * decay - change * learning_rate
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamStep {
    /// Decay rates of the two moments.
    pub betas: [f32; 2],
    /// Factor of the first moment.
    pub first_factor: f32,
    /// Divisor of the first moment.
    pub first_divisor: f32,
    /// Divisor of the second moment.
    pub second_divisor: f32,
    /// Added to the square root of the second moment.
    pub epsilon: f32,
    /// Factor of the parameter.
    pub decay: f32,
    /// Factor of the change.
    pub learning_rate: f32,
}
