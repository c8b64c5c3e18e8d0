// Original file: proto/ipdr/agent.proto


export interface WaitedForRequest {
  'subject'?: (string);
}

export interface WaitedForRequest__Output {
  'subject': (string);
}
