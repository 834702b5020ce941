// The part of ONNX's model format that we write, with the field numbers of the official `onnx.proto` (IR version 8).
import { BinaryWriter, WireType } from '@bufbuild/protobuf/wire';
import type { Tensor } from '../tensor.ts';

/** TensorProto.DataType. */
const dataTypes = { float32: 1, uint8: 2, int8: 3, int64: 7, bool: 9, float16: 10, bfloat16: 16 } as const;
type DataType = keyof typeof dataTypes;

export type Attribute = number | string | readonly number[] | { readonly float: number };

export interface Node {
  readonly type: string;
  /** '' is ONNX itself, 'com.microsoft' ONNX Runtime's own operators. */
  readonly domain?: string;
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  readonly attributes?: Readonly<Record<string, Attribute>>;
}

export type Initializer = {
  readonly name: string;
  readonly dims: readonly number[];
  readonly dtype: DataType;
} & (
  | { readonly bytes: Uint8Array }
  | {
      readonly external: {
        readonly location: string;
        readonly byteOffset: number;
        readonly byteLength: number;
      };
    }
);

interface TypedName {
  readonly name: string;
  readonly dtype: DataType;
  readonly shape: readonly (number | string)[];
}

export interface OnnxGraph {
  readonly nodes: readonly Node[];
  readonly initializers: readonly Initializer[];
  readonly inputs: readonly TypedName[];
  readonly outputs: readonly TypedName[];
}

/** A ModelProto's bytes. */
export function encodeModel(graph: OnnxGraph): Uint8Array {
  const model = new BinaryWriter();
  model.tag(1, WireType.Varint).int64(8); // ir_version
  message(model, 7, (w) => encodeGraph(w, graph));
  for (const [domain, version] of [
    ['', 18],
    ['com.microsoft', 1],
  ] as const)
    message(model, 8, (w) => {
      w.tag(1, WireType.LengthDelimited).string(domain);
      w.tag(2, WireType.Varint).int64(version);
    });
  return model.finish();
}

function encodeGraph(w: BinaryWriter, graph: OnnxGraph): void {
  for (const node of graph.nodes) message(w, 1, (n) => encodeNode(n, node));
  w.tag(2, WireType.LengthDelimited).string('fellrec');
  for (const initializer of graph.initializers) message(w, 5, (t) => encodeInitializer(t, initializer));
  for (const typed of graph.inputs) message(w, 11, (v) => encodeTypedName(v, typed));
  for (const typed of graph.outputs) message(w, 12, (v) => encodeTypedName(v, typed));
}

function encodeNode(w: BinaryWriter, node: Node): void {
  for (const name of node.inputs) w.tag(1, WireType.LengthDelimited).string(name);
  for (const name of node.outputs) w.tag(2, WireType.LengthDelimited).string(name);
  w.tag(3, WireType.LengthDelimited).string(`${node.type}.${node.outputs[0]}`);
  w.tag(4, WireType.LengthDelimited).string(node.type);
  for (const [name, attribute] of Object.entries(node.attributes ?? {}))
    message(w, 5, (a) => encodeAttribute(a, name, attribute));
  if (node.domain) w.tag(7, WireType.LengthDelimited).string(node.domain);
}

/** AttributeProto, with its type: FLOAT 1, INT 2, STRING 3, INTS 7. */
function encodeAttribute(w: BinaryWriter, name: string, attribute: Attribute): void {
  w.tag(1, WireType.LengthDelimited).string(name);
  if (typeof attribute === 'number') {
    w.tag(3, WireType.Varint).int64(attribute);
    w.tag(20, WireType.Varint).int32(2);
  } else if (typeof attribute === 'string') {
    w.tag(4, WireType.LengthDelimited).string(attribute);
    w.tag(20, WireType.Varint).int32(3);
  } else if ('float' in attribute) {
    w.tag(2, WireType.Bit32).float(attribute.float);
    w.tag(20, WireType.Varint).int32(1);
  } else {
    for (const integer of attribute) w.tag(8, WireType.Varint).int64(integer);
    w.tag(20, WireType.Varint).int32(7);
  }
}

function encodeInitializer(w: BinaryWriter, initializer: Initializer): void {
  for (const dim of initializer.dims) w.tag(1, WireType.Varint).int64(dim);
  w.tag(2, WireType.Varint).int32(dataTypes[initializer.dtype]);
  w.tag(8, WireType.LengthDelimited).string(initializer.name);
  if ('bytes' in initializer) {
    w.tag(9, WireType.LengthDelimited).bytes(initializer.bytes);
    return;
  }
  const { location, byteOffset, byteLength } = initializer.external;
  for (const [key, setting] of Object.entries({ location, offset: `${byteOffset}`, length: `${byteLength}` }))
    message(w, 13, (entry) => {
      entry.tag(1, WireType.LengthDelimited).string(key);
      entry.tag(2, WireType.LengthDelimited).string(setting);
    });
  w.tag(14, WireType.Varint).int32(1); // data_location EXTERNAL
}

function encodeTypedName(w: BinaryWriter, { name, dtype, shape }: TypedName): void {
  w.tag(1, WireType.LengthDelimited).string(name);
  message(w, 2, (type) =>
    message(type, 1, (tensor) => {
      tensor.tag(1, WireType.Varint).int32(dataTypes[dtype]);
      message(tensor, 2, (dims) => {
        for (const dim of shape)
          message(dims, 1, (d) => {
            if (typeof dim === 'number') d.tag(1, WireType.Varint).int64(dim);
            else d.tag(2, WireType.LengthDelimited).string(dim);
          });
      });
    }),
  );
}

function message(w: BinaryWriter, field: number, body: (w: BinaryWriter) => void): void {
  w.tag(field, WireType.LengthDelimited).fork();
  body(w);
  w.join();
}

/** A tensor's bytes as raw_data wants them (little-endian, as every platform that we run on). */
export function rawBytes({ data }: Tensor): Uint8Array {
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
}
