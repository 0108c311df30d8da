// Read by bindgen before mlx/c/*.h: stands in for mlx/c/half.h, which needs an Arm compiler's types.
#define MLX_HALF_H
#define HAS_FLOAT16
#define HAS_BFLOAT16
typedef struct { unsigned short bits; } float16_t; // blocklisted: setup.py declares it in Rust
typedef unsigned short bfloat16_t;
