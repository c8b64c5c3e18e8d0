// Original file: proto/ipdr/agent.proto


export interface FinishRecordingRequest {
  'recordingId'?: (string);
}

export interface FinishRecordingRequest__Output {
  'recordingId': (string);
}
