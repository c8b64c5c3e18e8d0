// Original file: proto/ipdr/agent.proto


export interface QueueDepth {
  'priority'?: (string);
  'waiting'?: (number);
}

export interface QueueDepth__Output {
  'priority': (string);
  'waiting': (number);
}
