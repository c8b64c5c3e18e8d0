// Original file: proto/ipdr/agent.proto

import type { WaitedRead as _ipdr_v1_WaitedRead, WaitedRead__Output as _ipdr_v1_WaitedRead__Output } from '../../ipdr/v1/WaitedRead.ts';

export interface WaitedForResponse {
  'reads'?: (_ipdr_v1_WaitedRead)[];
}

export interface WaitedForResponse__Output {
  'reads': (_ipdr_v1_WaitedRead__Output)[];
}
