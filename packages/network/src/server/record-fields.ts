// A message as JSON, whatever its fields: by reflection, so that a field that is added to the protocol later is there
// too. As Protobuf's own JSON mapping with the names of the .proto files, but for what would be long: activations and
// bytes are put aside, and a reference to them stands in their place.
import type { DescField } from '@bufbuild/protobuf';
import { isReflectMessage, type ReflectMessage } from '@bufbuild/protobuf/reflect';
import { FeatureSet_FieldPresence } from '@bufbuild/protobuf/wkt';
import type { Float32Tensor } from '@fellrec/graph';
import { type Activations, ActivationsSchema } from '#proto/tensor_pb';
import { decodeActivations } from '../protocol/activations.ts';
import { hex } from '../protocol/parameters.ts';

export type Json = boolean | number | string | readonly Json[] | { readonly [name: string]: Json };
export type JsonObject = Readonly<Record<string, Json>>;

/** Takes what is put aside, which it must copy, and returns what refers to it. Names are made of those of fields. */
export interface Aside {
  tensor(name: string, tensor: Float32Tensor): Json;
  bytes(name: string, bytes: Uint8Array): Json;
}

/** Bytes up to this many stand in the JSON as hexadecimal digits: checksums. */
const shortBytes = 64;

/** All fields of a message; those that may be absent only if they are there. Unknown ones are listed as `$unknown`. */
export function fieldsOf(message: ReflectMessage, aside: Aside, path: readonly string[] = []): JsonObject {
  const activations = message.desc.typeName === ActivationsSchema.typeName && decoded(message);
  const known = message.fields
    .filter((field) => field.presence === FeatureSet_FieldPresence.IMPLICIT || message.isSet(field))
    .map((field): [string, Json] => {
      const name = [...path, field.name];
      if (activations && field.name === 'data') return ['data', aside.tensor(path.join('.'), activations)];
      return [field.name, fieldValue(field, message, aside, name)];
    });
  const unknown = (message.getUnknown() ?? []).map(({ no, wireType, data }) => ({
    number: no,
    wire_type: wireType,
    data: bytesOf(data, aside, [...path, '$unknown', String(no)]),
  }));
  return Object.fromEntries(unknown.length > 0 ? [...known, ['$unknown', unknown]] : known);
}

/** The activations of a message; undefined if they are none: wrong lengths, or numbers that are not finite. */
function decoded({ message }: ReflectMessage): Float32Tensor | undefined {
  const activations = message as Activations;
  try {
    return decodeActivations('', activations, activations);
  } catch {
    return undefined;
  }
}

function fieldValue(field: DescField, message: ReflectMessage, aside: Aside, path: readonly string[]): Json {
  switch (field.fieldKind) {
    case 'list':
      return Array.from(message.get(field), (item, i) => single(field, item, aside, [...path, String(i)]));
    case 'map':
      return Object.fromEntries(
        Array.from(message.get(field), ([key, item], i) => [
          String(key),
          single(field, item, aside, [...path, String(i)]),
        ]),
      );
    default:
      return single(field, message.get(field), aside, path);
  }
}

function single({ enum: names }: DescField, value: unknown, aside: Aside, path: readonly string[]): Json {
  if (isReflectMessage(value)) return fieldsOf(value, aside, path);
  if (value instanceof Uint8Array) return bytesOf(value, aside, path);
  if (typeof value === 'bigint') return String(value);
  if (typeof value === 'number') {
    if (names) return names.value[value]?.name ?? value;
    return Number.isFinite(value) ? value : String(value);
  }
  return value as boolean | string;
}

function bytesOf(bytes: Uint8Array, aside: Aside, path: readonly string[]): Json {
  return bytes.length <= shortBytes ? hex(bytes) : aside.bytes(path.join('.'), bytes);
}
