#include "proto/descriptors.h"

const uint8_t proto_descriptors[] = {
#include "proto/descriptors.inc"
};
const size_t proto_descriptors_bytes = sizeof proto_descriptors;
