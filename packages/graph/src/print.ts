// A graph as text, one line a value: for reading, and for snapshot tests.
import { showShape } from './dim.ts';
import type { Outputs } from './segments.ts';
import { type Operation, topological } from './value.ts';

/** `%2 = matmul(%0, %1) {transposeB} : [batch, 8]`, ending with `return`. */
export function print(outputs: Outputs): string {
  const { order, canonical } = topological(Object.values(outputs));
  const names = new Map(order.map((node, i) => [node, `%${i}`]));
  const lines = order.map((node) => {
    const inputs = node.inputs.map((operand) => names.get(operand)).join(', ');
    const type = `${node.dtype === 'float32' ? '' : node.dtype}${showShape(node.shape)}`;
    return `${names.get(node)} = ${node.operation.kind}(${inputs})${attributes(node.operation)} : ${type}`;
  });
  const returned = Object.entries(outputs).map(
    ([name, node]) => `${name}: ${names.get(canonical.get(node)!)}`,
  );
  return `${lines.join('\n')}\nreturn ${returned.join(', ')}\n`;
}

function attributes(operation: Operation): string {
  if (operation.kind === 'constant') {
    const { dims, data } = operation.tensor;
    return ` {${data.length === 1 ? data[0] : `${dims.join('x')} values`}}`;
  }
  const shown = Object.entries(operation)
    .filter(([key, setting]) => !['kind', 'dtype', 'stored', 'shape'].includes(key) && setting !== false)
    .map(([key, setting]) => (setting === true ? key : `${key}: ${setting?.name ?? setting}`));
  return shown.length > 0 ? ` {${shown.join(', ')}}` : '';
}
