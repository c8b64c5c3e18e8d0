// Original file: proto/ipdr/agent.proto


export interface RecordRequest {
  'reference'?: (string);
}

export interface RecordRequest__Output {
  'reference': (string);
}
