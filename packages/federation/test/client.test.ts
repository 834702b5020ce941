import { describeClient } from './client-contract.ts';
import { quadratic, tensors } from './toy.ts';

describeClient('quadratic', async () => ({
  client: quadratic('a', { target: [1, -2] }),
  initial: tensors({ x: [0, 3] }),
}));
